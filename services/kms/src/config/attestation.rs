//! Whose evidence is believed.

use dstack_ra_tls::collateral::{ChipKeyClient, FetchError};
use serde::{Deserialize, Serialize};

/// A kind of TEE that guests run in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AcceptedTee {
    /// Intel TDX.
    Tdx,
    /// AMD SEV-SNP. Identity is what the host bound to the launch; no event after it is signed.
    SevSnp,
}

/// The `[attestation]` table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttestationFile {
    /// Kinds of TEE whose guests may ask for keys. The policy must allow them as well.
    pub accept: Vec<AcceptedTee>,
    /// AMD's key distribution service or a cache of it, for SNP guests without the certificate of their chip's key; empty asks nobody.
    pub amd_kds_url: String,
}

impl Default for AttestationFile {
    fn default() -> Self {
        Self { accept: vec![AcceptedTee::Tdx], amd_kds_url: ChipKeyClient::AMD.to_owned() }
    }
}

impl AttestationFile {
    pub(crate) fn accepts_snp(&self) -> bool {
        self.accept.contains(&AcceptedTee::SevSnp)
    }

    /// Whom to ask about chips' keys.
    pub(crate) fn chip_keys(&self) -> Result<Option<ChipKeyClient>, FetchError> {
        if self.amd_kds_url.is_empty() { Ok(None) } else { ChipKeyClient::new(&self.amd_kds_url).map(Some) }
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.accept.contains(&AcceptedTee::Tdx) {
            problems.push("attestation.accept: \"tdx\" cannot be left out in this release".to_owned());
        }
        if let Err(error) = self.chip_keys() {
            problems.push(format!("attestation.amd_kds_url: {error}"));
        }
        problems
    }
}
