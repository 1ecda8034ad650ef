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

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(attributes: u64) -> TdFields {
        TdFields {
            mrtd: [0; 48],
            rtmr: dstack_event_log::Registers([[0; 48]; 4]),
            tee_tcb_svn: [0; 16],
            tee_tcb_svn2: None,
            seam_attributes: [0; 8],
            xfam: [0; 8],
            mr_config_id: [0; 48],
            mr_owner: [0; 48],
            mr_owner_config: [0; 48],
            td_attributes: attributes.to_le_bytes(),
            mr_seam: [0; 48],
            mr_signer_seam: [0; 48],
            mr_service_td: None,
            report_data: [0; 64],
        }
    }

    fn check(fields: &TdFields, service_tds: &[[u8; 48]], intel_module: bool) -> Result<(), TdAttributeFault> {
        check_attributes(fields, &TdRules { service_tds, intel_module })
    }

    #[test]
    fn each_attribute_by_itself() {
        let with = |attributes| check(&fields(attributes), &[], true);

        assert_eq!(with(SEPT_VE_DISABLE), Ok(()));
        assert_eq!(with(0), Err(TdAttributeFault::SeptVeEnabled));
        assert_eq!(with(SEPT_VE_DISABLE | MIGRATABLE), Err(TdAttributeFault::Migratable));
        assert_eq!(with(SEPT_VE_DISABLE | SERVTD_EXT), Err(TdAttributeFault::ServiceTd));
        for bit in 0..8 {
            assert_eq!(with(SEPT_VE_DISABLE | 1 << bit), Err(TdAttributeFault::Debug), "bit {bit}");
        }
        assert_eq!(with(SEPT_VE_DISABLE | 1 << 30 | 1 << 31 | 1 << 63), Ok(()));
    }

    #[test]
    fn module_of_another_signer_needs_a_policy_that_says_so() {
        let other = TdFields { mr_signer_seam: [1; 48], ..fields(SEPT_VE_DISABLE) };

        assert_eq!(check(&other, &[], true), Err(TdAttributeFault::ModuleSigner));
        assert_eq!(check(&other, &[], false), Ok(()));
    }

    #[test]
    fn service_td_needs_a_policy_that_names_it() {
        let bound = TdFields { mr_service_td: Some([1; 48]), ..fields(SEPT_VE_DISABLE | SERVTD_EXT) };

        assert_eq!(check(&bound, &[], true), Err(TdAttributeFault::ServiceTd));
        assert_eq!(check(&bound, &[[2; 48]], true), Err(TdAttributeFault::ServiceTd));
        assert_eq!(check(&bound, &[[2; 48], [1; 48]], true), Ok(()));
        let unbound = TdFields { mr_service_td: Some([0; 48]), ..fields(SEPT_VE_DISABLE) };
        assert_eq!(check(&unbound, &[], true), Ok(()));
    }

    #[test]
    fn words_of_the_library_name_the_fault() {
        let words = ["Debug mode is enabled", "TD profiling is enabled", "TD migration is enabled", "SEPT_VE_DISABLE is not enabled"];
        let faults = [TdAttributeFault::Debug, TdAttributeFault::Debug, TdAttributeFault::Migratable, TdAttributeFault::SeptVeEnabled];
        assert_eq!(words.map(TdAttributeFault::in_words), faults);
        assert_eq!(TdAttributeFault::in_words("SERVTD_EXT is enabled"), TdAttributeFault::ServiceTd);
        assert_eq!(TdAttributeFault::in_words("Invalid MR service TD"), TdAttributeFault::ServiceTd);
        assert_eq!(TdAttributeFault::in_words("Reserved bits in TD attributes are set"), TdAttributeFault::ReservedBits);
    }
}
