//! Which implementation checks ECDSA signatures of quotes.
//!
//! By default the portable one, which also compiles to WebAssembly. Servers choose the feature `aws-lc`: the implementation their TLS
//! uses already, several times faster. Both check the same; the vectors run with either.

/// Implementation in use.
#[cfg(not(feature = "aws-lc"))]
pub(crate) type Backend = dcap_qvl::configs::DefaultConfig;

/// Implementation in use.
#[cfg(feature = "aws-lc")]
pub(crate) type Backend = aws_lc::AwsLcConfig;

/// ECDSA on P-256 with SHA-256: every signature of Intel's structures.
#[cfg(all(feature = "aws-lc", not(feature = "remember-signatures")))]
pub static P256_SHA256: &dyn rustls_pki_types::SignatureVerificationAlgorithm = webpki::aws_lc_rs::ECDSA_P256_SHA256;

/// ECDSA on P-256 with SHA-256: every signature of Intel's structures. What held once is not computed again.
#[cfg(feature = "remember-signatures")]
pub static P256_SHA256: &dyn rustls_pki_types::SignatureVerificationAlgorithm = &REMEMBERED;

#[cfg(feature = "remember-signatures")]
static REMEMBERED: crate::remembered_signatures::RememberedSignatures =
    crate::remembered_signatures::RememberedSignatures::new(webpki::aws_lc_rs::ECDSA_P256_SHA256);

#[cfg(feature = "aws-lc")]
mod aws_lc {
    use dcap_qvl::{
        config::{Config, CryptoProvider},
        signature::DerSigEncoder,
        x509::X509CertBackend,
    };
    use rustls_pki_types::SignatureVerificationAlgorithm;
    use sha2::{Digest as _, Sha256, Sha384};

    pub(crate) struct AwsLcConfig;

    impl Config for AwsLcConfig {
        type X509 = X509CertBackend;
        type SigEncoder = DerSigEncoder;
        type Crypto = AwsLc;
    }

    pub(crate) struct AwsLc;

    impl CryptoProvider for AwsLc {
        fn sig_algo() -> &'static dyn SignatureVerificationAlgorithm {
            super::P256_SHA256
        }

        fn sha256(data: &[u8]) -> [u8; 32] {
            Sha256::digest(data).into()
        }

        fn sha384(data: &[u8]) -> [u8; 48] {
            Sha384::digest(data).into()
        }
    }
}
