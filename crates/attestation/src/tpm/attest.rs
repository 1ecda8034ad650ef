//! `TPMS_ATTEST`: what a TPM signs when it quotes its registers.

use dstack_event_log::HashAlgorithm;

use super::reader::{Reader, TpmFormatError};

/// `TPM_GENERATED_VALUE`: no other key than a TPM's restricted one signs what starts with this.
const MAGIC: u32 = 0xff54_4347;
/// `TPM_ST_ATTEST_QUOTE`.
const QUOTE: u16 = 0x8018;
/// Banks a TPM can have, and bytes of a selection.
const MAX_SELECTIONS: u32 = 16;
const MAX_SELECTION_BYTES: u8 = 4;

/// Registers of one bank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcrSelection {
    /// The bank.
    pub algorithm: HashAlgorithm,
    /// Its registers, ascending.
    pub pcrs: Vec<u32>,
}

/// A quote's signed contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quoted {
    /// Name of the attestation key.
    pub qualified_signer: Vec<u8>,
    /// What the requester put in.
    pub qualifying_data: Vec<u8>,
    /// Milliseconds the TPM ran.
    pub clock_ms: u64,
    /// Resets since the TPM was made.
    pub reset_count: u32,
    /// Resumptions since the last reset.
    pub restart_count: u32,
    /// No time before this clock was lost.
    pub is_clock_safe: bool,
    /// Vendor's number.
    pub firmware_version: u64,
    /// What was quoted, in order.
    pub selections: Vec<PcrSelection>,
    /// Digest of the values, with the hash of the signature.
    pub pcr_digest: Vec<u8>,
}

impl Quoted {
    /// Parses the bytes that the TPM signed; they must be a quote and nothing else.
    ///
    /// # Errors
    /// [`TpmFormatError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, TpmFormatError> {
        let mut reader = Reader::new("TPMS_ATTEST", bytes);
        let magic = reader.u32("magic")?;
        if magic != MAGIC {
            return Err(reader.refuse("magic", magic, "0xff544347"));
        }
        let kind = reader.u16("type")?;
        if kind != QUOTE {
            return Err(reader.refuse("type", kind, "0x8018, a quote"));
        }
        let quoted = Self {
            qualified_signer: reader.sized("qualifiedSigner")?.to_vec(),
            qualifying_data: reader.sized("extraData")?.to_vec(),
            clock_ms: reader.u64("clock")?,
            reset_count: reader.u32("resetCount")?,
            restart_count: reader.u32("restartCount")?,
            is_clock_safe: parse_flag(&mut reader)?,
            firmware_version: reader.u64("firmwareVersion")?,
            selections: parse_selections(&mut reader)?,
            pcr_digest: reader.sized("pcrDigest")?.to_vec(),
        };
        reader.end()?;
        Ok(quoted)
    }
}

fn parse_flag(reader: &mut Reader<'_>) -> Result<bool, TpmFormatError> {
    match reader.u8("safe")? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(reader.refuse("safe", other, "0 or 1")),
    }
}

fn parse_selections(reader: &mut Reader<'_>) -> Result<Vec<PcrSelection>, TpmFormatError> {
    let count = reader.u32("pcrSelect")?;
    if count == 0 || count > MAX_SELECTIONS {
        return Err(reader.refuse("pcrSelect", count, "1 to 16 banks"));
    }
    let mut selections: Vec<PcrSelection> = Vec::new();
    for _ in 0..count {
        let id = reader.u16("hash")?;
        let algorithm = HashAlgorithm::from_id(id).filter(|algorithm| *algorithm != HashAlgorithm::Sha1);
        let is_new = |algorithm: &HashAlgorithm| selections.iter().all(|known| known.algorithm != *algorithm);
        let Some(algorithm) = algorithm.filter(is_new) else {
            return Err(reader.refuse("hash", id, "SHA-256, SHA-384 or SHA-512, each once"));
        };
        let size = reader.u8("sizeofSelect")?;
        if size > MAX_SELECTION_BYTES {
            return Err(reader.refuse("sizeofSelect", size, "at most 4"));
        }
        let bits = reader.bytes(size.into(), "pcrSelect")?;
        let pcrs = (0..u32::from(size) * 8).filter(|pcr| is_selected(bits, *pcr)).collect();
        selections.push(PcrSelection { algorithm, pcrs });
    }
    Ok(selections)
}

fn is_selected(bits: &[u8], pcr: u32) -> bool {
    let byte = usize::try_from(pcr / 8).ok().and_then(|byte| bits.get(byte));
    byte.is_some_and(|byte| byte & (1 << (pcr % 8)) != 0)
}
