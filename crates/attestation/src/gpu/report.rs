//! SPDM 1.1 `GET_MEASUREMENTS` and `MEASUREMENTS`, one behind the other: the transcript that the GPU signs.

use super::opaque::{self, OpaqueField};

/// Longest report that is read; an H100's has 4117 bytes.
const MAX_REPORT_BYTES: usize = 64 << 10;
const SPDM_1_1: u8 = 0x11;
const GET_MEASUREMENTS: u8 = 0xe0;
const MEASUREMENTS: u8 = 0x60;
const SIGNATURE_REQUESTED: u8 = 1;
const ALL_MEASUREMENTS: u8 = 0xff;
const DMTF: u8 = 1;
const SIGNATURE_BYTES: usize = 96;
const NONCE_BYTES: usize = 32;

/// Why bytes are not a report. Their sender is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GpuReportError {
    /// Too long.
    #[error("report of {got} bytes exceeds the limit of {MAX_REPORT_BYTES}")]
    TooLong {
        /// Its size.
        got: usize,
    },
    /// A field goes beyond the end.
    #[error("report ends inside {field}: {needed} bytes expected at byte {offset}")]
    Truncated {
        /// Name of the field.
        field: &'static str,
        /// Where it starts.
        offset: usize,
        /// Bytes it has.
        needed: usize,
    },
    /// A field with a value that it cannot have here.
    #[error("{field} of the report is {got:#x}, expected {expected}")]
    Value {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        got: usize,
        /// What it should be.
        expected: &'static str,
    },
    /// Something follows the signature, or fills the space of a list.
    #[error("{length} bytes follow {field}")]
    Trailing {
        /// What was read.
        field: &'static str,
        /// How much follows.
        length: usize,
    },
}

pub(super) struct Reader<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], offset: usize) -> Self {
        Self { rest: bytes, offset }
    }

    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn bytes(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], GpuReportError> {
        let short = GpuReportError::Truncated { field, offset: self.offset, needed: length };
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(short)?;
        self.rest = rest;
        self.offset += length;
        Ok(bytes)
    }

    /// A little-endian number of `length` bytes, at most three.
    pub(super) fn number(&mut self, length: usize, field: &'static str) -> Result<usize, GpuReportError> {
        let bytes = self.bytes(length, field)?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    fn expect(&mut self, field: &'static str, value: u8, expected: &'static str) -> Result<(), GpuReportError> {
        match self.number(1, field)? {
            got if got == usize::from(value) => Ok(()),
            got => Err(GpuReportError::Value { field, got, expected }),
        }
    }

    fn end(self, field: &'static str) -> Result<(), GpuReportError> {
        match self.rest.len() {
            0 => Ok(()),
            length => Err(GpuReportError::Trailing { field, length }),
        }
    }
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measurement {
    /// Number, from 1.
    pub index: u8,
    /// `DMTFSpecMeasurementValueType`: what is measured.
    pub kind: u8,
    /// Digest or raw value.
    pub value: Vec<u8>,
}

/// What a report says. Unverified unless it comes from a [`VerifiedReport`](super::VerifiedReport).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuReport {
    /// What the requester put in.
    pub nonce: [u8; NONCE_BYTES],
    /// The GPU's own random number.
    pub responder_nonce: [u8; NONCE_BYTES],
    /// Measurements, ascending.
    pub measurements: Vec<Measurement>,
    /// Versions and identities.
    pub opaque: Vec<OpaqueField>,
}

impl GpuReport {
    /// Splits a report into what it says, what is signed, and the signature.
    pub(super) fn parse(bytes: &[u8]) -> Result<(Self, &[u8], &[u8]), GpuReportError> {
        if bytes.len() > MAX_REPORT_BYTES {
            return Err(GpuReportError::TooLong { got: bytes.len() });
        }
        let mut reader = Reader::new(bytes, 0);
        let nonce = parse_request(&mut reader)?;
        reader.expect("version of the response", SPDM_1_1, "0x11, SPDM 1.1")?;
        reader.expect("code of the response", MEASUREMENTS, "0x60, MEASUREMENTS")?;
        reader.bytes(2, "parameters of the response")?;
        let count = reader.number(1, "number of measurements")?;
        let length = reader.number(3, "length of the measurements")?;
        let measurements = parse_measurements(reader.offset(), reader.bytes(length, "measurements")?, count)?;
        let responder_nonce = parse_nonce(&mut reader)?;
        let length = reader.number(2, "length of the opaque data")?;
        let opaque = opaque::parse(reader.offset(), reader.bytes(length, "opaque data")?)?;
        let (signed, _) = bytes.split_at(reader.offset());
        let signature = reader.bytes(SIGNATURE_BYTES, "signature")?;
        reader.end("the signature")?;
        Ok((Self { nonce, responder_nonce, measurements, opaque }, signed, signature))
    }
}

fn parse_request(reader: &mut Reader<'_>) -> Result<[u8; NONCE_BYTES], GpuReportError> {
    reader.expect("version of the request", SPDM_1_1, "0x11, SPDM 1.1")?;
    reader.expect("code of the request", GET_MEASUREMENTS, "0xe0, GET_MEASUREMENTS")?;
    reader.expect("attributes of the request", SIGNATURE_REQUESTED, "1, with a signature")?;
    reader.expect("operation of the request", ALL_MEASUREMENTS, "0xff, all measurements")?;
    let nonce = parse_nonce(reader)?;
    reader.bytes(1, "slot of the request")?;
    Ok(nonce)
}

fn parse_nonce(reader: &mut Reader<'_>) -> Result<[u8; NONCE_BYTES], GpuReportError> {
    let bytes = reader.bytes(NONCE_BYTES, "nonce")?;
    Ok(std::array::from_fn(|at| bytes.get(at).copied().unwrap_or_default()))
}

fn parse_measurements(offset: usize, bytes: &[u8], count: usize) -> Result<Vec<Measurement>, GpuReportError> {
    let mut reader = Reader::new(bytes, offset);
    let mut measurements: Vec<Measurement> = Vec::new();
    for _ in 0..count {
        let index = reader.number(1, "index of a measurement")?;
        if measurements.last().is_some_and(|last| usize::from(last.index) >= index) {
            return Err(GpuReportError::Value { field: "index of a measurement", got: index, expected: "ascending" });
        }
        reader.expect("specification of a measurement", DMTF, "1, DMTF")?;
        let size = reader.number(2, "size of a measurement")?;
        let mut block = Reader::new(reader.bytes(size, "measurement")?, reader.offset() - size);
        let kind = block.number(1, "type of a measurement")?;
        let length = block.number(2, "length of a measurement")?;
        let value = block.bytes(length, "value of a measurement")?.to_vec();
        block.end("a measurement")?;
        measurements.push(Measurement { index: narrow(index), kind: narrow(kind), value });
    }
    reader.end("the measurements")?;
    Ok(measurements)
}

/// Of a number that was read from one byte.
fn narrow(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}
