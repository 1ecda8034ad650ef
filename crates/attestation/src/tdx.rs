//! The signature side of a TDX quote, and the attributes that are never acceptable.

use dcap_qvl::{QuoteClaims, QuotePolicy, TcbStatus, verify::QuoteVerifier};

use crate::{Fault, Link, QuoteCollateral, TdFields, crypto::Backend, error::Reason};

/// Facts about the platform that a verified quote gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PckPlatform {
    pub(crate) tcb_status: TcbStatus,
    pub(crate) advisory_ids: Vec<String>,
    pub(crate) ppid: Vec<u8>,
    pub(crate) fmspc: [u8; 6],
    pub(crate) tcb_evaluation_data_number: u32,
    pub(crate) collateral_expires_at: u64,
}

/// Verifies signatures, chains, revocation, dates and TCB matching against `root`.
///
/// `now`: Unix seconds, from the caller.
pub(crate) fn verify_signature(quote: &[u8], collateral: &QuoteCollateral, root: Vec<u8>, now: u64) -> Result<PckPlatform, Reason> {
    let names_root = collateral.names(&root);
    let verifier = QuoteVerifier::<Backend>::new_with_config(root).allow_debug(true).allow_service_td(true);
    let claims = verifier.verify_with_policy(quote, collateral.to_dcap(), now, &QuotePolicy::claims_only(now)).map_err(|error| {
        match classify(&format!("{error:#}")) {
            // Nothing in the collateral is under this root: that says more than which signature failed first.
            Reason::Signature { fault: Fault::Invalid, detail, .. } if !names_root => {
                Reason::Signature { link: Link::CertificateChain, fault: Fault::OtherRoot, detail }
            }
            reason => reason,
        }
    })?;
    Ok(platform(claims))
}

fn platform(claims: QuoteClaims) -> PckPlatform {
    PckPlatform {
        tcb_status: claims.tcb.status,
        advisory_ids: claims.tcb.advisory_ids,
        ppid: claims.platform.pck.ppid,
        fmspc: claims.platform.pck.fmspc,
        tcb_evaluation_data_number: claims.tcb.eval_data_number,
        collateral_expires_at: claims.earliest_expiration_date,
    }
}

/// Who is at fault, from the library's text (its version is pinned, and tests hold each line of this table).
fn classify(text: &str) -> Reason {
    const TABLE: &[(&str, Link, Fault)] = &[
        ("issue date is in the future", Link::Endorsements, Fault::NotYetValid),
        ("TCBInfo expired", Link::Endorsements, Fault::Expired),
        ("QE Identity expired", Link::Endorsements, Fault::Expired),
        ("CrlExpired", Link::Revocation, Fault::Expired),
        ("CertExpired", Link::CertificateChain, Fault::Expired),
        ("CertNotValidYet", Link::CertificateChain, Fault::NotYetValid),
        ("CertRevoked", Link::Revocation, Fault::Revoked),
        ("TCB status is invalid: Revoked", Link::Tcb, Fault::Revoked),
        ("No matching TCB level", Link::Tcb, Fault::UnknownTcb),
        ("below minimum required from TDX module", Link::Tcb, Fault::UnknownTcb),
        ("Fmspc mismatch", Link::Endorsements, Fault::OtherPlatform),
        ("UnknownIssuer", Link::CertificateChain, Fault::OtherRoot),
        ("TDX module MRSIGNER mismatch", Link::Tcb, Fault::Module),
        ("SEAMATTRIBUTES", Link::Tcb, Fault::Module),
    ];
    const ATTRIBUTES: &[(&str, TdAttributeFault)] = &[
        ("Reserved bits in TD attributes", TdAttributeFault::ReservedBits),
        ("TD migration is enabled", TdAttributeFault::Migratable),
        ("SERVTD_EXT is enabled", TdAttributeFault::ServiceTd),
        ("SEPT_VE_DISABLE is not enabled", TdAttributeFault::SeptVeEnabled),
        ("Debug mode is enabled", TdAttributeFault::Debug),
        ("TD profiling is enabled", TdAttributeFault::Debug),
        ("Invalid MR service TD", TdAttributeFault::ServiceTd),
    ];
    if let Some((_, fault)) = ATTRIBUTES.iter().find(|(part, _)| text.contains(part)) {
        return Reason::TdAttributes(*fault);
    }
    let known = TABLE.iter().find(|(part, ..)| text.contains(part));
    let (link, fault) = known.map_or((Link::Signature, Fault::Invalid), |(_, link, fault)| (*link, *fault));
    Reason::Signature { link, fault, detail: text.chars().take(300).collect() }
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

/// Checks the fields of a quote whose signature is good.
pub(crate) fn check_attributes(fields: &TdFields) -> Result<(), TdAttributeFault> {
    const SEPT_VE_DISABLE: u64 = 1 << 28;
    const MIGRATABLE: u64 = 1 << 29;
    const UNDER_DEBUG: u64 = 0xff;

    let attributes = u64::from_le_bytes(fields.td_attributes);
    if attributes & UNDER_DEBUG != 0 {
        return Err(TdAttributeFault::Debug);
    }
    if attributes & MIGRATABLE != 0 {
        return Err(TdAttributeFault::Migratable);
    }
    if attributes & SEPT_VE_DISABLE == 0 {
        return Err(TdAttributeFault::SeptVeEnabled);
    }
    if fields.mr_signer_seam != [0; 48] {
        return Err(TdAttributeFault::ModuleSigner);
    }
    if fields.mr_service_td.is_some_and(|service| service != [0; 48]) {
        return Err(TdAttributeFault::ServiceTd);
    }
    Ok(())
}
