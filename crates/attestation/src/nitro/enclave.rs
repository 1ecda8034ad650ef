//! What an enclave is to dstack.
//!
//! An enclave has no register that grows with the application: its image is its identity, and events of its own are nobody's word.

use sha2::{Digest as _, Sha256};

use super::{DocumentKind, VerifiedDocument};

/// `SHA-256(PCR0 || PCR1 || PCR2)`: OS image hash, `mr_system` and `mr_aggregated` in one. `None` if the document is not of an enclave or
/// lacks one of the registers.
#[must_use]
pub fn enclave_digest(verified: &VerifiedDocument) -> Option<[u8; 32]> {
    let document = verified.document();
    let pcrs = (0..3).map(|index| document.pcrs.get(&index)).collect::<Option<Vec<_>>>();
    let pcrs = pcrs.filter(|_| document.kind == DocumentKind::Enclave)?;
    Some(pcrs.into_iter().fold(Sha256::new(), |hash, pcr| hash.chain_update(pcr)).finalize().into())
}

/// `SHA-256(instance id)`: the same for all enclaves and NitroTPM documents of one instance, different for another.
#[must_use]
pub fn device_id(verified: &VerifiedDocument) -> [u8; 32] {
    Sha256::digest(verified.document().instance_id()).into()
}

/// The rule of deployed allow lists for enclaves: `SHA-256` of the module id up to its first `-`. That is `i` for every enclave there is,
/// so it names no device; only for comparison with such lists.
#[must_use]
pub fn device_id_by_prefix(verified: &VerifiedDocument) -> [u8; 32] {
    let module_id = &verified.document().module_id;
    Sha256::digest(module_id.split_once('-').map_or(module_id.as_str(), |(prefix, _)| prefix)).into()
}
