//! AMD's revocation list: one per product line, signed by its root, naming authorities that lost their trust.
//!
//! Chip keys all have the serial number 0 and cannot be named by a list; a chip's keys are revoked by raising its TCB version.

use x509_parser::{prelude::FromDer as _, revocation_list::CertificateRevocationList};

use super::chain::{VerifiedChain, refuse, unix, verify_signed};
use crate::{Fault, Link, Refusal};

/// Largest list that is read.
const MAX_LIST_BYTES: usize = 1 << 20;

fn broken(fault: Fault, detail: impl std::fmt::Display) -> Refusal {
    refuse(Link::Revocation, fault, detail)
}

/// A list that was consulted.
pub(super) struct Consulted {
    /// Unix seconds of its issue.
    pub(super) issued_at: u64,
    /// Unix seconds until which it is current.
    pub(super) valid_until: u64,
}

/// Looks for the chain's authority in the lists of its root. `None`: no list of that root was given.
///
/// `lists`: DER, untrusted, lists of other authorities among them. Of several lists of the root each must hold; the oldest counts.
pub(super) fn check(lists: &[Vec<u8>], chain: &VerifiedChain<'_>, now: u64) -> Result<Option<Consulted>, Refusal> {
    let mut consulted: Option<Consulted> = None;
    for der in lists {
        if der.len() > MAX_LIST_BYTES {
            return Err(broken(Fault::Malformed, format_args!("a revocation list of {} bytes", der.len())));
        }
        let list = match CertificateRevocationList::from_der(der) {
            Ok(([], list)) => list,
            Ok((rest, _)) => return Err(broken(Fault::Malformed, format_args!("{} bytes follow a revocation list", rest.len()))),
            Err(error) => return Err(broken(Fault::Malformed, format_args!("a revocation list cannot be read: {error}"))),
        };
        if list.issuer().as_raw() != chain.root.subject().as_raw() {
            continue;
        }
        let found = check_list(&list, chain, now)?;
        consulted = Some(match consulted {
            None => found,
            Some(before) => {
                Consulted { issued_at: before.issued_at.min(found.issued_at), valid_until: before.valid_until.min(found.valid_until) }
            }
        });
    }
    Ok(consulted)
}

fn check_list(list: &CertificateRevocationList<'_>, chain: &VerifiedChain<'_>, now: u64) -> Result<Consulted, Refusal> {
    if list.signature_algorithm != list.tbs_cert_list.signature {
        return Err(broken(Fault::Invalid, "the revocation list names two signature algorithms"));
    }
    verify_signed(&list.signature_algorithm, list.tbs_cert_list.as_ref(), &list.signature_value.data, &chain.root)
        .map_err(|why| broken(Fault::Invalid, format_args!("the revocation list is not signed by AMD's root: {why}")))?;
    if let Some(extension) = list.extensions().iter().find(|extension| extension.critical) {
        return Err(broken(Fault::Malformed, format_args!("unknown critical extension {} of the revocation list", extension.oid)));
    }
    let (issued_at, next) = (unix(list.last_update().timestamp()), list.next_update());
    if issued_at > now {
        return Err(broken(Fault::NotYetValid, format_args!("the revocation list is of {}", list.last_update())));
    }
    let next = next.ok_or_else(|| broken(Fault::Malformed, "the revocation list does not say until when it is current"))?;
    let valid_until = unix(next.timestamp());
    if valid_until < now {
        return Err(broken(Fault::Expired, format_args!("the revocation list was current until {next}")));
    }
    let is_named = list.iter_revoked_certificates().any(|revoked| *revoked.serial() == chain.intermediate.serial);
    if is_named {
        let serial = chain.intermediate.raw_serial_as_string();
        return Err(broken(Fault::Revoked, format_args!("the authority with serial number {serial} is revoked")));
    }
    Ok(Consulted { issued_at, valid_until })
}
