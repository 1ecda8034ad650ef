//! Intel TDX: the verifier of its quotes, and the attributes of a TD that make its evidence worthless.

use crate::{Context, Platform, PlatformVerifier, Refusal, TdFields, UnverifiedQuote, VerifiedPlatform, dcap};

/// Verifies TDX quotes of version 4 and 5.
#[derive(Debug, Clone, Copy, Default)]
pub struct TdxVerifier;

impl PlatformVerifier for TdxVerifier {
    type Evidence = [u8];

    fn platform(&self) -> Platform {
        Platform::Tdx
    }

    fn verify(&self, quote: &[u8], context: &Context<'_>) -> Result<VerifiedPlatform, Refusal> {
        let parsed = UnverifiedQuote::parse(quote).map_err(|error| dcap::malformed(Platform::Tdx, &error))?;
        dcap::verify(&dcap::Parsed::Tdx(&parsed), quote, context)
    }
}

/// An attribute of a TD that makes its evidence worthless, although the quote is genuine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TdAttributeFault {
    /// The host can read the TD's memory and registers.
    #[error("the TD runs in debug or profiling mode")]
    Debug,
    /// Bits that must be zero.
    #[error("reserved bits of the TD attributes are set")]
    ReservedBits,
    /// The TD can be moved by a migration TD.
    #[error("the TD can be migrated")]
    Migratable,
    /// Attacks on memory the guest has not accepted are possible.
    #[error("SEPT_VE_DISABLE is not set")]
    SeptVeEnabled,
    /// Another TD has power over this one.
    #[error("a service TD is bound to the TD")]
    ServiceTd,
    /// Not Intel's module.
    #[error("the TDX module is not signed by Intel (MRSIGNERSEAM is not zero)")]
    ModuleSigner,
}

impl TdAttributeFault {
    /// The fault that the verification library names in `text`.
    pub(crate) fn in_words(text: &str) -> Self {
        const WORDS: &[(&str, TdAttributeFault)] = &[
            ("Debug mode", TdAttributeFault::Debug),
            ("profiling", TdAttributeFault::Debug),
            ("migration", TdAttributeFault::Migratable),
            ("SEPT_VE_DISABLE", TdAttributeFault::SeptVeEnabled),
            ("SERVTD_EXT", TdAttributeFault::ServiceTd),
            ("MR service TD", TdAttributeFault::ServiceTd),
        ];
        WORDS.iter().find(|(words, _)| text.contains(words)).map_or(Self::ReservedBits, |(_, fault)| *fault)
    }
}

const SERVTD_EXT: u64 = 1 << 17;
const SEPT_VE_DISABLE: u64 = 1 << 28;
const MIGRATABLE: u64 = 1 << 29;
/// Bits 0 to 7: if any is set, the host can look inside.
const UNDER_DEBUG: u64 = 0xff;

/// Whether the host can look inside the TD.
pub(crate) fn is_debug(fields: &TdFields) -> bool {
    u64::from_le_bytes(fields.td_attributes) & UNDER_DEBUG != 0
}

/// What a policy may accept of a TD.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TdRules<'a> {
    /// `mr_service_td` values that are accepted besides zero.
    pub(crate) service_tds: &'a [[u8; 48]],
    /// MRSIGNERSEAM must be zero, rather than what the signed TCB information names.
    pub(crate) intel_module: bool,
}

/// Checks the attributes of a TD whose quote is genuine.
pub(crate) fn check_attributes(fields: &TdFields, rules: &TdRules<'_>) -> Result<(), TdAttributeFault> {
    let attributes = u64::from_le_bytes(fields.td_attributes);
    if is_debug(fields) {
        return Err(TdAttributeFault::Debug);
    }
    if attributes & MIGRATABLE != 0 {
        return Err(TdAttributeFault::Migratable);
    }
    if attributes & SEPT_VE_DISABLE == 0 {
        return Err(TdAttributeFault::SeptVeEnabled);
    }
    if rules.intel_module && fields.mr_signer_seam != [0; 48] {
        return Err(TdAttributeFault::ModuleSigner);
    }
    let service_td = fields.mr_service_td.unwrap_or([0; 48]);
    let bound = service_td != [0; 48] || attributes & SERVTD_EXT != 0;
    if bound && !rules.service_tds.contains(&service_td) {
        return Err(TdAttributeFault::ServiceTd);
    }
    Ok(())
}
