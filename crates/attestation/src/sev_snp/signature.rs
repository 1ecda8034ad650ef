//! The two signature algorithms of AMD's chain: RSA-PSS with SHA-384 for certificates, ECDSA P-384 with SHA-384 for reports.
//!
//! Two implementations that check the same: the portable one, which also compiles to WebAssembly, and with the feature `aws-lc` the one
//! that TLS uses, several times faster.

/// A signature that does not hold, or a key that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadSignature;

#[cfg(feature = "aws-lc")]
pub(super) use aws_lc::{verify_ecdsa_p384, verify_rsa_pss};
#[cfg(not(feature = "aws-lc"))]
pub(super) use portable::{verify_ecdsa_p384, verify_rsa_pss};

#[cfg(any(test, not(feature = "aws-lc")))]
mod portable {
    use p384::ecdsa::{Signature, VerifyingKey, signature::hazmat::PrehashVerifier as _};
    use rsa::{RsaPublicKey, pkcs1::DecodeRsaPublicKey as _, pss, signature::Verifier as _};
    use sha2::{Digest as _, Sha384};

    use super::BadSignature;

    /// `key`: PKCS#1, DER. MGF1 with SHA-384 and a salt of 48 bytes.
    pub(in super::super) fn verify_rsa_pss(key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        let key = RsaPublicKey::from_pkcs1_der(key).map_err(|_| BadSignature)?;
        let signature = pss::Signature::try_from(signature).map_err(|_| BadSignature)?;
        pss::VerifyingKey::<Sha384>::new(key).verify(message, &signature).map_err(|_| BadSignature)
    }

    /// `key`: SEC1 point. `r`, `s`: big-endian.
    pub(in super::super) fn verify_ecdsa_p384(key: &[u8], message: &[u8], r: &[u8; 48], s: &[u8; 48]) -> Result<(), BadSignature> {
        let key = VerifyingKey::from_sec1_bytes(key).map_err(|_| BadSignature)?;
        let signature = Signature::from_scalars(*r, *s).map_err(|_| BadSignature)?;
        key.verify_prehash(&Sha384::digest(message), &signature).map_err(|_| BadSignature)
    }
}

#[cfg(feature = "aws-lc")]
mod aws_lc {
    use webpki::aws_lc_rs::{ECDSA_P384_SHA384, RSA_PSS_2048_8192_SHA384_LEGACY_KEY};

    use super::BadSignature;

    /// `key`: PKCS#1, DER. MGF1 with SHA-384 and a salt of 48 bytes.
    pub(in super::super) fn verify_rsa_pss(key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        RSA_PSS_2048_8192_SHA384_LEGACY_KEY.verify_signature(key, message, signature).map_err(|_| BadSignature)
    }

    /// `key`: SEC1 point. `r`, `s`: big-endian.
    pub(in super::super) fn verify_ecdsa_p384(key: &[u8], message: &[u8], r: &[u8; 48], s: &[u8; 48]) -> Result<(), BadSignature> {
        ECDSA_P384_SHA384.verify_signature(key, message, &der_signature(r, s)).map_err(|_| BadSignature)
    }

    /// `SEQUENCE { INTEGER r, INTEGER s }`, at most 104 bytes.
    pub(super) fn der_signature(r: &[u8; 48], s: &[u8; 48]) -> Vec<u8> {
        let body = [der_integer(r), der_integer(s)].concat();
        let length = u8::try_from(body.len()).unwrap_or(u8::MAX);
        [&[0x30, length], body.as_slice()].concat()
    }

    pub(super) fn der_integer(number: &[u8; 48]) -> Vec<u8> {
        let leading_zeros = number.iter().take_while(|byte| **byte == 0).count().min(47);
        let (_, digits) = number.split_at(leading_zeros);
        let sign: &[u8] = if digits.first().is_some_and(|byte| byte & 0x80 != 0) { &[0] } else { &[] };
        let length = u8::try_from(sign.len() + digits.len()).unwrap_or(u8::MAX);
        [&[0x02, length], sign, digits].concat()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests panic on purpose")]
mod tests {
    use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

    use super::{BadSignature, portable};
    use crate::sev_snp::UnverifiedReport;

    const ARK: &[u8] = include_bytes!("../../roots/amd-ark-milan.der");
    const ASK: &[u8] = include_bytes!("../../intermediates/amd-sev-milan.der");
    const VCEK: &[u8] = include_bytes!("../../tests/testdata/snp/keys/vcek-1b35b841.der");
    const REPORT: &[u8] = include_bytes!("../../tests/testdata/snp/reports/a20e02a2e8198894.bin");

    fn parse(der: &[u8]) -> X509Certificate<'_> {
        X509Certificate::from_der(der).unwrap().1
    }

    #[test]
    fn both_implementations_accept_the_genuine_and_refuse_the_changed() {
        let (ark, ask, vcek) = (parse(ARK), parse(ASK), parse(VCEK));
        let report = UnverifiedReport::parse(REPORT).unwrap();
        let (r, s) = report.signature();
        let flipped = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes[40] ^= 1;
            bytes
        };
        let key = |certificate: &X509Certificate<'_>| certificate.public_key().subject_public_key.data.to_vec();
        let (message, signature) = (ask.tbs_certificate.as_ref(), &*ask.signature_value.data);
        for verify in [super::verify_rsa_pss, portable::verify_rsa_pss] {
            assert_eq!(verify(&key(&ark), message, signature), Ok(()));
            assert_eq!(verify(&key(&ask), message, signature), Err(BadSignature));
            assert_eq!(verify(&flipped(&key(&ark)), message, signature), Err(BadSignature));
            assert_eq!(verify(&key(&ark), &flipped(message), signature), Err(BadSignature));
            assert_eq!(verify(&key(&ark), message, &flipped(signature)), Err(BadSignature));
            assert_eq!(verify(&key(&ark), message, &signature[1..]), Err(BadSignature));
            assert_eq!(verify(&[], message, signature), Err(BadSignature));
        }
        for verify in [super::verify_ecdsa_p384, portable::verify_ecdsa_p384] {
            assert_eq!(verify(&key(&vcek), report.signed(), r, s), Ok(()));
            assert_eq!(verify(&key(&vcek), &flipped(report.signed()), r, s), Err(BadSignature));
            assert_eq!(verify(&flipped(&key(&vcek)), report.signed(), r, s), Err(BadSignature));
            assert_eq!(verify(&key(&vcek), report.signed(), s, r), Err(BadSignature));
            assert_eq!(verify(&key(&vcek), report.signed(), &[0; 48], s), Err(BadSignature));
            assert_eq!(verify(&key(&vcek), report.signed(), r, &[0; 48]), Err(BadSignature));
            assert_eq!(verify(&key(&vcek), report.signed(), &[0xff; 48], s), Err(BadSignature));
            assert_eq!(verify(&[], report.signed(), r, s), Err(BadSignature));
        }
    }

    /// Numbers that begin with zeros or with a set bit have other lengths in DER.
    #[cfg(feature = "aws-lc")]
    #[test]
    fn numbers_of_every_length_are_written_in_der() {
        let mut small = [0; 48];
        small[47] = 5;
        let mut high = [0; 48];
        high[1] = 0x80;

        assert_eq!(super::aws_lc::der_integer(&small), [2, 1, 5]);
        assert_eq!(super::aws_lc::der_integer(&[0; 48]), [2, 1, 0]);
        assert_eq!(super::aws_lc::der_integer(&high)[..4], [2, 48, 0, 0x80]);
        assert_eq!(super::aws_lc::der_integer(&[0x7f; 48])[..3], [2, 48, 0x7f]);
        let both = super::aws_lc::der_signature(&[0xff; 48], &small);
        assert_eq!((both[..4].to_vec(), both.len()), (vec![0x30, 54, 2, 49], 56));
    }
}
