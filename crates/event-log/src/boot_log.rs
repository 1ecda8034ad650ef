//! The firmware's binary log: TCG2 crypto-agile format, as in ACPI `CCEL` and in `binary_bios_measurements` of a TPM.
//!
//! A log says of itself which digests each entry has; nothing is believed about lengths that the header did not declare and the
//! bytes do not hold. Whether the log is true is decided by its replay against a verified quote.

use crate::{
    Digest384, HashAlgorithm, MAX_EVENTS,
    event::Event,
    event_type::EV_NO_ACTION,
    pcr_bank::PcrBank,
    reader::{EndOfBytes, Reader},
};

/// Largest binary log that is parsed.
pub const MAX_BOOT_LOG_BYTES: usize = 8 << 20;
/// Most hash algorithms a log may declare.
pub const MAX_ALGORITHMS: usize = 8;

/// Index of entries that belong to no PCR.
const NO_PCR: u32 = u32::MAX;
/// Register index that CCEL uses for MRTD, and the first of RTMR0.
const CCEL_RTMR0: u32 = 1;
const SIGNATURE: &[u8; 16] = b"Spec ID Event03\0";
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";
const LONGEST_DIGEST: u16 = 64;

/// Why a binary log is refused. The log's supplier is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BootLogError {
    /// The log is too long.
    #[error("boot log of {got} bytes exceeds the limit of {MAX_BOOT_LOG_BYTES}")]
    TooLong {
        /// Bytes given.
        got: usize,
    },
    /// Too many entries.
    #[error("boot log has more than {MAX_EVENTS} entries")]
    TooManyEvents,
    /// A field goes beyond the end.
    #[error("boot log ends inside {what}: {needed} bytes expected at byte {offset}")]
    Truncated {
        /// Where the field starts.
        offset: usize,
        /// Bytes the field has.
        needed: usize,
        /// Name of the field.
        what: &'static str,
    },
    /// The first entry is not the header of the crypto-agile format.
    #[error("boot log does not start with the header of the crypto-agile format (\"Spec ID Event03\")")]
    NotCryptoAgile,
    /// The header declares too many algorithms, none, one twice, or one with a length that is not its own.
    #[error("boot log header declares {problem}")]
    Algorithms {
        /// What is wrong.
        problem: String,
    },
    /// An entry has a digest of an algorithm that the header does not declare, or two of one.
    #[error("entry {index} at byte {offset} has a digest of algorithm {algorithm:#06x} that is undeclared or there twice")]
    UnexpectedDigest {
        /// Position in the log, the header not counted.
        index: usize,
        /// Where the entry starts.
        offset: usize,
        /// `TPM_ALG_ID`.
        algorithm: u16,
    },
    /// An entry has no digest at all.
    #[error("entry {index} at byte {offset} has no digest")]
    NoDigest {
        /// Position in the log, the header not counted.
        index: usize,
        /// Where the entry starts.
        offset: usize,
    },
    /// An entry has no digest of the bank that is replayed.
    #[error("entry {index} at byte {offset} has no {algorithm} digest")]
    MissingDigest {
        /// Position in the log, the header not counted.
        index: usize,
        /// Where the entry starts.
        offset: usize,
        /// Bank that is replayed.
        algorithm: HashAlgorithm,
    },
    /// An entry names a register that does not exist.
    #[error("entry {index} at byte {offset} names register {register}, which does not exist")]
    NoSuchRegister {
        /// Position in the log, the header not counted.
        index: usize,
        /// Where the entry starts.
        offset: usize,
        /// Register named.
        register: u32,
    },
    /// The locality that started the TPM is not 0, 3 or 4, or it is told after PCR 0 was extended.
    #[error("entry {index} at byte {offset} tells a startup locality that cannot be")]
    StartupLocality {
        /// Position in the log, the header not counted.
        index: usize,
        /// Where the entry starts.
        offset: usize,
    },
}

impl From<EndOfBytes> for BootLogError {
    fn from(end: EndOfBytes) -> Self {
        Self::Truncated { offset: end.offset, needed: end.needed, what: end.what }
    }
}

/// A hash algorithm that the log's header declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeclaredAlgorithm {
    /// `TPM_ALG_ID`.
    pub id: u16,
    /// Bytes of a digest.
    pub digest_length: u16,
}

/// One entry of a binary log, as it came: unverified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootEvent<'a> {
    /// Where the entry starts in the log.
    pub offset: usize,
    /// PCR index; in CCEL the register's index plus one, with 0 for MRTD.
    pub register: u32,
    /// TCG event type.
    pub event_type: u32,
    /// `TPM_ALG_ID` and digest, of declared algorithms, each at most once.
    pub digests: Vec<(u16, &'a [u8])>,
    /// What the firmware says was measured. Only for some event types is this what the digest covers.
    pub data: &'a [u8],
}

impl<'a> BootEvent<'a> {
    /// The digest for one bank.
    #[must_use]
    pub fn digest(&self, algorithm: HashAlgorithm) -> Option<&'a [u8]> {
        self.digests.iter().find(|(id, _)| *id == algorithm.id()).map(|(_, digest)| *digest)
    }

    /// The locality that an entry of the kind `StartupLocality` tells.
    fn startup_locality(&self) -> Option<&'a [u8]> {
        (self.event_type == EV_NO_ACTION).then(|| self.data.strip_prefix(STARTUP_LOCALITY)).flatten()
    }
}

/// A binary log, parsed and not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootLog<'a> {
    algorithms: Vec<DeclaredAlgorithm>,
    events: Vec<BootEvent<'a>>,
}

impl<'a> BootLog<'a> {
    /// Parses `log`: header, entries, then nothing or padding (bytes that are all `ff` or all `00`).
    ///
    /// Source: TCG PC Client Platform Firmware Profile 1.06, sections 10.2 and 10.4; for CCEL UEFI 2.10, section 38.
    pub fn parse(log: &'a [u8]) -> Result<Self, BootLogError> {
        if log.len() > MAX_BOOT_LOG_BYTES {
            return Err(BootLogError::TooLong { got: log.len() });
        }
        let mut reader = Reader::new(log);
        let algorithms = parse_header(&mut reader)?;
        let mut events = Vec::new();
        while !is_padding(reader.rest()) {
            if events.len() == MAX_EVENTS {
                return Err(BootLogError::TooManyEvents);
            }
            events.push(parse_event(&mut reader, &algorithms, events.len())?);
        }
        Ok(Self { algorithms, events })
    }

    /// Algorithms of the header, in its order.
    #[must_use]
    pub fn algorithms(&self) -> &[DeclaredAlgorithm] {
        &self.algorithms
    }

    /// The entries after the header, in order.
    #[must_use]
    pub fn events(&self) -> &[BootEvent<'a>] {
        &self.events
    }

    /// PCR values of one bank after the log.
    ///
    /// Entries of type `EV_NO_ACTION` are not extended; a `StartupLocality` among them sets the start value of PCR 0.
    pub fn replay(&self, algorithm: HashAlgorithm) -> Result<PcrBank, BootLogError> {
        let mut bank = PcrBank::new(algorithm);
        for (index, event) in self.events.iter().enumerate() {
            let offset = event.offset;
            if let Some(locality) = event.startup_locality() {
                let started = matches!(locality, [locality] if bank.start_at_locality(*locality));
                started.then_some(()).ok_or(BootLogError::StartupLocality { index, offset })?;
            }
            if event.event_type == EV_NO_ACTION {
                continue;
            }
            let digest = event.digest(algorithm).ok_or(BootLogError::MissingDigest { index, offset, algorithm })?;
            let extended = bank.extend(event.register, digest);
            extended.ok_or(BootLogError::NoSuchRegister { index, offset, register: event.register })?;
        }
        Ok(bank)
    }

    /// The entries that a TD's registers were extended with, as entries of the JSON form: `imr` is the index minus one.
    ///
    /// Left out are entries of index 0 (MRTD, not extended at run time), of indices above RTMR3 (a TD has no such register), and those
    /// of type `EV_NO_ACTION`. Errors: [`BootLogError::MissingDigest`] if one of the others has no SHA-384 digest.
    pub fn rtmr_events(&self) -> Result<Vec<Event>, BootLogError> {
        let registers = CCEL_RTMR0..=crate::RUNTIME_REGISTER + CCEL_RTMR0;
        let measured = |event: &&BootEvent| event.event_type != EV_NO_ACTION && registers.contains(&event.register);
        let numbered = self.events.iter().enumerate().filter(|(_, event)| measured(event));
        numbered.map(|(index, event)| rtmr_event(index, event)).collect()
    }

    /// The bytes of the log, without padding.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut spec = SIGNATURE.to_vec();
        spec.extend_from_slice(&[0, 0, 0, 0, 0, 2, 0, 2]);
        spec.extend_from_slice(&length(self.algorithms.len()));
        for algorithm in &self.algorithms {
            spec.extend_from_slice(&algorithm.id.to_le_bytes());
            spec.extend_from_slice(&algorithm.digest_length.to_le_bytes());
        }
        spec.push(0);
        let mut out = [0; 28].to_vec();
        out.splice(4..8, EV_NO_ACTION.to_le_bytes());
        out.extend_from_slice(&length(spec.len()));
        out.extend_from_slice(&spec);
        self.events.iter().for_each(|event| event.write_to(&mut out));
        out
    }
}

impl BootEvent<'_> {
    fn write_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.register.to_le_bytes());
        out.extend_from_slice(&self.event_type.to_le_bytes());
        out.extend_from_slice(&length(self.digests.len()));
        for (id, digest) in &self.digests {
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(digest);
        }
        out.extend_from_slice(&length(self.data.len()));
        out.extend_from_slice(self.data);
    }
}

/// Lengths in a parsed log were read from 32 bits.
fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()
}

fn rtmr_event(index: usize, event: &BootEvent<'_>) -> Result<Event, BootLogError> {
    let missing = BootLogError::MissingDigest { index, offset: event.offset, algorithm: HashAlgorithm::Sha384 };
    let digest = event.digest(HashAlgorithm::Sha384).and_then(|digest| Digest384::try_from(digest).ok()).ok_or(missing)?;
    let mut entry = Event::boot(event.register - CCEL_RTMR0, event.event_type, &digest, "");
    entry.event_payload = event.data.to_vec();
    Ok(entry)
}

/// Nothing, or bytes of an area that was never written.
fn is_padding(rest: &[u8]) -> bool {
    rest.iter().all(|byte| *byte == 0xff) || rest.iter().all(|byte| *byte == 0)
}

/// The first entry, in the layout of older logs: register, type, a SHA-1 digest of zeros, and the `TCG_EfiSpecIDEvent`.
fn parse_header(reader: &mut Reader<'_>) -> Result<Vec<DeclaredAlgorithm>, BootLogError> {
    let _register = reader.u32("the header's register")?;
    let event_type = reader.u32("the header's type")?;
    let _digest: [u8; 20] = reader.array("the header's digest")?;
    let spec = reader.sized("the header's data")?;
    if event_type != EV_NO_ACTION || !spec.starts_with(SIGNATURE) {
        return Err(BootLogError::NotCryptoAgile);
    }
    let base = reader.offset() - spec.len();
    parse_spec_id(Reader::new(spec)).map_err(|error| match error {
        BootLogError::Truncated { offset, needed, what } => BootLogError::Truncated { offset: base + offset, needed, what },
        other => other,
    })
}

fn parse_spec_id(mut spec: Reader<'_>) -> Result<Vec<DeclaredAlgorithm>, BootLogError> {
    let _signature: [u8; 16] = spec.array("the header's signature")?;
    let _platform_class = spec.u32("the header's platform class")?;
    let _minor_major_errata_uintn: [u8; 4] = spec.array("the header's version")?;
    let count = spec.u32("the header's number of algorithms")?;
    let refused = |problem: String| Err(BootLogError::Algorithms { problem });
    if count == 0 || usize::try_from(count).map_or(true, |count| count > MAX_ALGORITHMS) {
        return refused(format!("{count} hash algorithms, expected 1 to {MAX_ALGORITHMS}"));
    }
    let mut algorithms: Vec<DeclaredAlgorithm> = Vec::new();
    for _ in 0..count {
        let (id, digest_length) = (spec.u16("the header's algorithms")?, spec.u16("the header's algorithms")?);
        if algorithms.iter().any(|known| known.id == id) {
            return refused(format!("algorithm {id:#06x} twice"));
        }
        let own = HashAlgorithm::from_id(id).map(HashAlgorithm::digest_length);
        let fits = own.map_or((1..=LONGEST_DIGEST).contains(&digest_length), |own| own == usize::from(digest_length));
        if !fits {
            return refused(format!("digests of {digest_length} bytes for algorithm {id:#06x}"));
        }
        algorithms.push(DeclaredAlgorithm { id, digest_length });
    }
    let vendor = spec.u8("the header's vendor data")?;
    spec.bytes(usize::from(vendor), "the header's vendor data")?;
    Ok(algorithms)
}

fn parse_event<'a>(reader: &mut Reader<'a>, declared: &[DeclaredAlgorithm], index: usize) -> Result<BootEvent<'a>, BootLogError> {
    let offset = reader.offset();
    let register = reader.u32("an entry's register")?;
    let event_type = reader.u32("an entry's type")?;
    if register == NO_PCR && event_type != EV_NO_ACTION {
        return Err(BootLogError::NoSuchRegister { index, offset, register });
    }
    let count = reader.u32("an entry's number of digests")?;
    if count == 0 {
        // Sixteen zeros would otherwise be an entry or padding, depending on what follows.
        return Err(BootLogError::NoDigest { index, offset });
    }
    let mut digests: Vec<(u16, &[u8])> = Vec::new();
    for _ in 0..count {
        let algorithm = reader.u16("an entry's algorithm")?;
        let known = declared.iter().find(|known| known.id == algorithm);
        let known = known.filter(|_| digests.iter().all(|(id, _)| *id != algorithm));
        let known = known.ok_or(BootLogError::UnexpectedDigest { index, offset, algorithm })?;
        digests.push((algorithm, reader.bytes(usize::from(known.digest_length), "an entry's digest")?));
    }
    let data = reader.sized("an entry's data")?;
    Ok(BootEvent { offset, register, event_type, digests, data })
}
