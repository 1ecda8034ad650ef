//! Who may sign Intel's papers, beyond being under the root: docs/decisions/0006.
//!
//! The library accepts any signer under the root, and PCK certificates stand under it too. A machine's own key must not be able to call its
//! own firmware up to date.

use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use crate::{Anchor, Fault, QuoteCollateral, certificates::certificates_of_pem};

/// Extension that says which machine a PCK certificate is of; no other certificate has it.
const SGX_EXTENSIONS: &str = "1.2.840.113741.1.13.1";

/// Refuses TCB information and identities whose signer is no authority for them. That chains and signatures hold was checked before.
///
/// `pck_chain`: reads the machine's own certificates, leaf first; only asked where anybody's root is trusted.
pub(crate) fn check(collateral: &QuoteCollateral, pck_chain: impl Fn() -> Vec<Vec<u8>>, anchor: &Anchor) -> Result<(), (Fault, String)> {
    let (tcb_info, qe_identity) = (&collateral.tcb_info_issuer_chain, &collateral.qe_identity_issuer_chain);
    check_chain("TCB information", tcb_info, &pck_chain, anchor)?;
    if tcb_info == qe_identity {
        return Ok(());
    }
    check_chain("quoting enclave identity", qe_identity, &pck_chain, anchor)
}

fn check_chain(papers: &str, pem: &str, pck_chain: impl Fn() -> Vec<Vec<u8>>, anchor: &Anchor) -> Result<(), (Fault, String)> {
    let chain = certificates_of_pem(pem.as_bytes()).map_err(|reason| (Fault::Malformed, format!("issuers of {papers}: {reason}")))?;
    let invalid = |why: &str| Err((Fault::Invalid, format!("the signer of {papers} {why}")));
    let Some((signer, issuers)) = chain.split_first() else { return Err((Fault::Missing, format!("there is no signer of {papers}"))) };
    let Ok((_, certificate)) = X509Certificate::from_der(signer) else { return invalid("is no certificate") };
    if certificate.extensions().iter().any(|extension| extension.oid.to_id_string() == SGX_EXTENSIONS) {
        return invalid("has the key of a machine, not of an authority");
    }
    let mut between = issuers.iter().filter(|der| der.as_slice() != anchor.der());
    if anchor.kind().is_built_in() {
        return if between.next().is_some() { invalid("must be issued directly by the root CA") } else { Ok(()) };
    }
    let pck_chain = pck_chain();
    let of_machines: Vec<_> = pck_chain.iter().skip(1).filter(|der| der.as_slice() != anchor.der()).map(|der| key_of(der)).collect();
    if between.any(|der| of_machines.contains(&key_of(der))) {
        return invalid("stands under the authority that certifies machines");
    }
    Ok(())
}

/// SubjectPublicKeyInfo: an authority may have several certificates for one key. The bytes themselves where they are no certificate.
fn key_of(der: &[u8]) -> &[u8] {
    X509Certificate::from_der(der).map_or(der, |(_, certificate)| certificate.tbs_certificate.subject_pki.raw)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::{TrustAnchors, UnverifiedQuote, Vendor};

    const QUOTE: &[u8] = include_bytes!("../tests/testdata/tdx/quotes/f1c8503301126c30.bin");
    const COLLATERAL: &str = include_str!("../tests/testdata/tdx/collateral/b0c06f000000-tdx-platform-20250313-e17.json");
    const OTHER_ROOT: &[u8] = include_bytes!("../tests/testdata/synthetic/root_ca.der");
    const OTHER_COLLATERAL: &str = include_str!("../tests/testdata/synthetic/valid_tdx_v4.collateral.json");

    /// A genuine machine's certificates, as PEM and as DER.
    fn machine() -> (String, Vec<Vec<u8>>) {
        let at = QUOTE.windows(11).position(|window| window == b"-----BEGIN ").unwrap();
        let pem = String::from_utf8_lossy(&QUOTE[at..]).trim_end_matches('\0').to_owned();
        (pem, UnverifiedQuote::parse(QUOTE).unwrap().pck_chain().unwrap().to_vec())
    }

    fn anchor(root: Option<&[u8]>) -> Anchor {
        let anchors = TrustAnchors::hardware();
        let anchors = match root {
            Some(root) => anchors.replace(Vendor::Intel, [root.to_vec()]).unwrap(),
            None => anchors,
        };
        anchors.roots(Vendor::Intel).next().unwrap().clone()
    }

    /// What is thought of papers whose signer has `issuers` between itself and the root.
    fn with(issuers: impl Fn(&str, &str) -> String, root: Option<&[u8]>) -> Result<(), String> {
        let collateral = QuoteCollateral::parse_json(COLLATERAL).unwrap();
        let (pem, machine) = machine();
        let chain = issuers(&collateral.tcb_info_issuer_chain, &pem);
        let both = QuoteCollateral { tcb_info_issuer_chain: chain.clone(), qe_identity_issuer_chain: chain.clone(), ..collateral.clone() };
        let identity = QuoteCollateral { qe_identity_issuer_chain: chain, ..collateral };
        let both = check(&both, || machine.clone(), &anchor(root)).map_err(|(_, why)| why);
        assert!(both.is_ok() || check(&identity, || machine.clone(), &anchor(root)).is_err(), "the identity's signer is checked as well");
        both
    }

    fn certificates(pem: &str) -> Vec<&str> {
        pem.split_inclusive("-----END CERTIFICATE-----").filter(|one| one.contains("BEGIN")).collect()
    }

    #[test]
    fn the_root_itself_issues_intels_signer() {
        assert_eq!(with(|signer, _| signer.to_owned(), None), Ok(()));
    }

    #[test]
    fn rejects_a_machines_own_key_under_every_root() {
        for root in [None, Some(OTHER_ROOT)] {
            assert!(with(|_, machine| machine.to_owned(), root).unwrap_err().contains("key of a machine"));
        }
    }

    #[test]
    fn rejects_an_authority_between_intels_root_and_the_signer() {
        let between = |signer: &str, machine: &str| [certificates(signer)[0], certificates(machine)[1], certificates(signer)[1]].concat();

        assert!(with(between, None).unwrap_err().contains("directly by the root"));
        assert!(with(between, Some(OTHER_ROOT)).unwrap_err().contains("certifies machines"));
    }

    #[test]
    fn another_root_may_have_an_authority_for_its_papers() {
        let own = |_: &str, _: &str| QuoteCollateral::parse_json(OTHER_COLLATERAL).unwrap().tcb_info_issuer_chain;

        assert_eq!(with(own, Some(OTHER_ROOT)), Ok(()));
        assert!(with(own, None).unwrap_err().contains("directly by the root"));
    }

    #[test]
    fn rejects_papers_without_a_signer() {
        assert!(with(|_, _| String::new(), None).is_err());
        assert!(with(|_, _| "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(), None).is_err());
    }
}
