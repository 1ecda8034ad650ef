//! The document: a CBOR map inside a COSE_Sign1 structure.

use std::collections::BTreeMap;

use ciborium::Value;
use scale::Decode as _;

use crate::{
    CborError,
    cbor::{self, Map, UnverifiedSign1},
};

/// Longest document that is read.
const MAX_DOCUMENT_BYTES: usize = 64 << 10;
/// Bytes of a measurement.
const PCR_BYTES: usize = 48;
const MAX_PCR: u8 = 31;
const MAX_CERTIFICATES: usize = 16;

/// Why bytes are not a document. Their sender is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// Too long.
    #[error("document of {got} bytes exceeds the limit of {MAX_DOCUMENT_BYTES}")]
    TooLong {
        /// Its size.
        got: usize,
    },
    /// The structure around the document, or the document's.
    #[error(transparent)]
    Cbor(#[from] CborError),
    /// It has the registers of an enclave and those of a NitroTPM, or neither.
    #[error("the document has {found}, expected one of pcrs and nitrotpm_pcrs")]
    Registers {
        /// What it has.
        found: &'static str,
    },
}

/// Who asked for a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentKind {
    /// An enclave, of the Nitro Secure Module.
    Enclave,
    /// An instance, of its NitroTPM.
    NitroTpm,
}

/// What a document says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NitroDocument {
    /// Who asked for it.
    pub kind: DocumentKind,
    /// `<instance id>-enc<enclave id>`, or the instance id.
    pub module_id: String,
    /// Milliseconds since 1970.
    pub timestamp_ms: u64,
    /// Registers by number, 48 bytes each.
    pub pcrs: BTreeMap<u8, [u8; PCR_BYTES]>,
    /// Certificate of the key that signed, DER.
    pub certificate: Vec<u8>,
    /// Certificates of its issuers, DER, the root first.
    pub cabundle: Vec<Vec<u8>>,
    /// Chosen by whoever asked.
    pub public_key: Option<Vec<u8>>,
    /// Chosen by whoever asked; 64 bytes of report data in dstack.
    pub user_data: Option<Vec<u8>>,
    /// Chosen by whoever asked.
    pub nonce: Option<Vec<u8>>,
}

impl NitroDocument {
    fn parse(payload: &[u8]) -> Result<Self, DocumentError> {
        let mut map = Map::new(cbor::parse(payload)?)?;
        let (kind, key) = match (map.contains("pcrs"), map.contains("nitrotpm_pcrs")) {
            (true, false) => (DocumentKind::Enclave, "pcrs"),
            (false, true) => (DocumentKind::NitroTpm, "nitrotpm_pcrs"),
            (true, true) => return Err(DocumentError::Registers { found: "both" }),
            (false, false) => return Err(DocumentError::Registers { found: "neither" }),
        };
        map.need("digest", "digest", "SHA384", |value| value.into_text().ok().filter(|digest| digest == "SHA384"))?;
        let optional = |longest| cbor::bytes_of(0..=longest);
        let document = Self {
            kind,
            module_id: map.need("module_id", "module_id", "text of 1 to 256 bytes", cbor::text_of(256))?,
            timestamp_ms: map
                .need("timestamp", "timestamp", "a positive number", |value| cbor::unsigned(value).filter(|time| *time > 0))?,
            pcrs: map.need(key, "pcrs", "1 to 32 registers of 48 bytes", parse_pcrs)?,
            certificate: map.need("certificate", "certificate", "1 to 1024 bytes", cbor::bytes_of(1..=1024))?,
            cabundle: map.need("cabundle", "cabundle", "1 to 16 certificates of 1 to 1024 bytes", parse_bundle)?,
            public_key: map.take("public_key", "public_key", "1 to 1024 bytes", cbor::bytes_of(1..=1024))?,
            user_data: map.take("user_data", "user_data", "at most 512 bytes", optional(512))?,
            nonce: map.take("nonce", "nonce", "at most 512 bytes", optional(512))?,
        };
        Ok(document)
    }

    /// Whether every register that describes the image is zero, as in an enclave that its host may look into.
    #[must_use]
    pub fn is_debug(&self) -> bool {
        self.kind == DocumentKind::Enclave && self.pcrs.get(&0).is_none_or(|pcr| pcr.iter().all(|byte| *byte == 0))
    }

    /// The EC2 instance that the document is of, such as `i-0123456789abcdef0`.
    #[must_use]
    pub fn instance_id(&self) -> &str {
        self.module_id.split_once("-enc").map_or(self.module_id.as_str(), |(instance, _)| instance)
    }
}

fn parse_pcrs(value: Value) -> Option<BTreeMap<u8, [u8; PCR_BYTES]>> {
    let entries = Map::new(value).ok()?.into_entries();
    let pcrs: Option<BTreeMap<_, _>> = entries.into_iter().map(|(index, value)| Some((pcr_index(index)?, pcr_value(value)?))).collect();
    pcrs.filter(|pcrs| !pcrs.is_empty())
}

fn pcr_index(value: Value) -> Option<u8> {
    cbor::unsigned(value).and_then(|index| u8::try_from(index).ok()).filter(|index| *index <= MAX_PCR)
}

fn pcr_value(value: Value) -> Option<[u8; PCR_BYTES]> {
    value.into_bytes().ok()?.try_into().ok()
}

fn parse_bundle(value: Value) -> Option<Vec<Vec<u8>>> {
    let certificates = value.into_array().ok().filter(|bundle| (1..=MAX_CERTIFICATES).contains(&bundle.len()))?;
    certificates.into_iter().map(|certificate| cbor::bytes_of(1..=1024)(certificate)).collect()
}

/// A document as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct UnverifiedDocument {
    document: NitroDocument,
    pub(super) sign1: UnverifiedSign1,
}

impl UnverifiedDocument {
    /// Parses a COSE_Sign1 structure with a document inside, tagged or not.
    ///
    /// Nothing may follow, but for the rest of the version 0 envelope that published documents were cut out of: runtime events, report
    /// data equal to the document's user data, and a configuration, to the last byte.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        if bytes.len() > MAX_DOCUMENT_BYTES {
            return Err(DocumentError::TooLong { got: bytes.len() });
        }
        let (value, rest) = cbor::split(bytes)?;
        let sign1 = UnverifiedSign1::new(value)?;
        let document = NitroDocument::parse(sign1.payload())?;
        if !rest.is_empty() && !is_rest_of_envelope(rest, document.user_data.as_deref()) {
            return Err(CborError::Trailing { length: rest.len() }.into());
        }
        Ok(Self { document, sign1 })
    }

    /// What it says, unverified.
    #[must_use]
    pub fn document(&self) -> &NitroDocument {
        &self.document
    }

    pub(super) fn into_document(self) -> NitroDocument {
        self.document
    }
}

fn is_rest_of_envelope(mut rest: &[u8], user_data: Option<&[u8]>) -> bool {
    let parts = <(Vec<(String, Vec<u8>)>, [u8; 64], String)>::decode(&mut rest);
    matches!(parts, Ok((_, report_data, _)) if rest.is_empty() && user_data == Some(&report_data))
}
