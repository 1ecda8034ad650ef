//! Report and certificate chain as attesters send them.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use crate::certificates::{CertificatesError, certificates_of_pem};

/// Longest JSON form, and most GPUs in it.
const MAX_JSON_BYTES: usize = 4 << 20;
const MAX_GPUS: usize = 64;

/// A GPU's evidence. Everything in it is unverified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuEvidence {
    /// SPDM request and response, one behind the other.
    pub report: Vec<u8>,
    /// DER, the certificate of the attestation key first.
    pub certificates: Vec<Vec<u8>>,
}

/// Why text is not evidence of GPUs. Its sender is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GpuEvidenceError {
    /// Too long.
    #[error("evidence of {got} bytes exceeds the limit of {MAX_JSON_BYTES}")]
    TooLong {
        /// Its size.
        got: usize,
    },
    /// Not the JSON form, or no GPU in it.
    #[error("not JSON with an evidence_list of 1 to {MAX_GPUS} GPUs: {reason}")]
    Json {
        /// What the parser met.
        reason: String,
    },
    /// A field's text is not what it should be.
    #[error("{field} of GPU {index} is malformed: {reason}")]
    Field {
        /// Its name.
        field: &'static str,
        /// Position in the list.
        index: usize,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Deserialize)]
struct Wire {
    evidence_list: Vec<WireGpu>,
}

#[derive(Deserialize)]
struct WireGpu {
    certificate: String,
    evidence: String,
}

impl GpuEvidence {
    /// Evidence with its chain in PEM, the certificate of the attestation key first.
    ///
    /// # Errors
    /// [`GpuEvidenceError::Field`]: the text has a broken PEM block.
    pub fn from_pem(report: Vec<u8>, pem: &[u8]) -> Result<Self, GpuEvidenceError> {
        let broken = |error: CertificatesError| GpuEvidenceError::Field { field: "certificate", index: 0, reason: error.to_string() };
        Ok(Self { report, certificates: certificates_of_pem(pem).map_err(broken)? })
    }

    /// Reads the request form of NVIDIA's attestation service: `{"evidence_list":[{"certificate","evidence"}]}`, both in base64, the
    /// certificates a PEM chain. Other fields are ignored.
    ///
    /// # Errors
    /// [`GpuEvidenceError`].
    pub fn parse_json(text: &str) -> Result<Vec<Self>, GpuEvidenceError> {
        if text.len() > MAX_JSON_BYTES {
            return Err(GpuEvidenceError::TooLong { got: text.len() });
        }
        let refused = |reason: String| GpuEvidenceError::Json { reason };
        let wire: Wire = serde_json::from_str(text).map_err(|error| refused(error.to_string()))?;
        if !(1..=MAX_GPUS).contains(&wire.evidence_list.len()) {
            return Err(refused(format!("{} GPUs", wire.evidence_list.len())));
        }
        wire.evidence_list.iter().enumerate().map(|(index, gpu)| read(index, gpu)).collect()
    }
}

fn read(index: usize, gpu: &WireGpu) -> Result<GpuEvidence, GpuEvidenceError> {
    let broken = |field, reason| GpuEvidenceError::Field { field, index, reason };
    let decode = |field, text: &str| STANDARD.decode(text).map_err(|error| broken(field, error.to_string()));
    let report = decode("evidence", &gpu.evidence)?;
    let pem = decode("certificate", &gpu.certificate)?;
    Ok(GpuEvidence { report, certificates: certificates_of_pem(&pem).map_err(|error| broken("certificate", error.to_string()))? })
}
