//! Revocation lists that the caller gives for a chain.
//!
//! Nothing is fetched. A list counts if an authority of the chain signed it and it is current; lists of others are ignored. What no list
//! covers is told.

use x509_parser::{certificate::X509Certificate, prelude::FromDer as _, revocation_list::CertificateRevocationList};

use crate::{
    Fault, Link, NotChecked, Passed, Platform, Refusal, VerifiedPlatform,
    certificate_chain::{hash_of, unix},
    public_key::{PublicKey, Signature},
};

/// Most lists that are read, and the largest of them.
const MAX_LISTS: usize = 32;
const MAX_LIST_BYTES: usize = 1 << 20;

/// What the lists say about a chain in which no certificate is revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Revocation {
    /// Unix seconds of issue of the oldest list that was consulted, and of the first end of one.
    consulted: Option<(u64, u64)>,
    /// Authorities of the chain without a list.
    uncovered: Vec<String>,
}

impl Revocation {
    /// Looks for the certificates of a chain in the lists of their issuers.
    ///
    /// `chain`: verified, the attestation key first, the root last. `lists`: DER, untrusted.
    pub(crate) fn check(platform: Platform, chain: &[X509Certificate<'_>], lists: &[Vec<u8>], now: u64) -> Result<Self, Refusal> {
        let refuse = |fault, detail: String| Refusal::new(platform, Link::Revocation, fault, detail);
        if lists.len() > MAX_LISTS {
            return Err(refuse(Fault::Malformed, format!("{} revocation lists, at most {MAX_LISTS} are read", lists.len())));
        }
        let mut revocation = Self { consulted: None, uncovered: Vec::new() };
        let parsed: Vec<CertificateRevocationList<'_>> =
            lists.iter().map(|der| parse(der)).collect::<Result<_, _>>().map_err(|detail| refuse(Fault::Malformed, detail))?;
        for (certificate, issuer) in chain.iter().zip(chain.iter().skip(1)) {
            let mut is_covered = false;
            for list in parsed.iter().filter(|list| list.issuer().as_raw() == issuer.subject().as_raw()) {
                let (issued_at, valid_until) = check_list(list, issuer, now).map_err(|(fault, detail)| refuse(fault, detail))?;
                if list.iter_revoked_certificates().any(|revoked| *revoked.serial() == certificate.serial) {
                    return Err(refuse(Fault::Revoked, format!("{} is revoked by {}", certificate.subject(), issuer.subject())));
                }
                let (first, last) = revocation.consulted.unwrap_or((issued_at, valid_until));
                revocation.consulted = Some((first.min(issued_at), last.min(valid_until)));
                is_covered = true;
            }
            if !is_covered {
                revocation.uncovered.push(issuer.subject().to_string());
            }
        }
        Ok(revocation)
    }

    /// Tells in `verified` what was checked and what was not.
    pub(crate) fn describe(&self, verified: &mut VerifiedPlatform) {
        if let Some((issued_at, valid_until)) = self.consulted {
            verified.endorsed_at = Some(verified.endorsed_at.map_or(issued_at, |earlier| earlier.min(issued_at)));
            verified.valid_until = Some(verified.valid_until.map_or(valid_until, |earlier| earlier.min(valid_until)));
        }
        match self.uncovered.as_slice() {
            [] => verified.passed.push(Passed { link: Link::Revocation, found: "no certificate of the chain is revoked".to_owned() }),
            authorities => {
                let why = format!("no revocation list was given of {}", authorities.join(" and of "));
                verified.not_checked.push(NotChecked { link: Link::Revocation, why });
            }
        }
    }
}

fn parse(der: &[u8]) -> Result<CertificateRevocationList<'_>, String> {
    if der.len() > MAX_LIST_BYTES {
        return Err(format!("a revocation list of {} bytes, at most {MAX_LIST_BYTES} are read", der.len()));
    }
    match CertificateRevocationList::from_der(der) {
        Ok(([], list)) => Ok(list),
        Ok((rest, _)) => Err(format!("{} bytes follow a revocation list", rest.len())),
        Err(error) => Err(format!("a revocation list cannot be read: {error}")),
    }
}

/// Unix seconds of the list's issue and of its end.
fn check_list(list: &CertificateRevocationList<'_>, issuer: &X509Certificate<'_>, now: u64) -> Result<(u64, u64), (Fault, String)> {
    let name = issuer.subject();
    let invalid = |detail: &str| (Fault::Invalid, format!("the revocation list of {name} {detail}"));
    if !matches!(issuer.key_usage(), Ok(Some(usage)) if usage.value.crl_sign()) {
        return Err(invalid("is of an authority that may not sign lists"));
    }
    if list.signature_algorithm != list.tbs_cert_list.signature {
        return Err(invalid("names two signature algorithms"));
    }
    let hash = hash_of(&list.signature_algorithm).ok_or_else(|| invalid("has a signature that is not implemented"))?;
    let key = PublicKey::from_spki(issuer.public_key()).ok_or_else(|| invalid("is signed by a key that is not implemented"))?;
    let signature = Signature::Der(&list.signature_value.data);
    key.verify(hash, list.tbs_cert_list.as_ref(), signature).map_err(|_| invalid("is not signed by it"))?;
    if let Some(extension) = list.extensions().iter().find(|extension| extension.critical) {
        return Err((Fault::NotImplemented, format!("the revocation list of {name} has the critical extension {}", extension.oid)));
    }
    let issued_at = unix(list.last_update().timestamp());
    if issued_at > now {
        return Err((Fault::NotYetValid, format!("the revocation list of {name} is of {}", list.last_update())));
    }
    let end = list.next_update().ok_or_else(|| (Fault::Malformed, format!("the revocation list of {name} has no end")))?;
    let valid_until = unix(end.timestamp());
    if valid_until < now {
        return Err((Fault::Expired, format!("the revocation list of {name} was current until {end}")));
    }
    Ok((issued_at, valid_until))
}
