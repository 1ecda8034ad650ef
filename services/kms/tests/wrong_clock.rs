//! The KMS's own clock is ten years off: it releases nothing, says why, and is as before once the clock is right.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

mod testbed;

use std::sync::Arc;

use dstack_api::{
    RpcError,
    kms::{AppKeyResponse, Empty, GetAppKeyRequest, KmsClient},
};
use dstack_ra_tls::{
    CertKey, CertificateAuthority, Validity,
    tls::{ByRule, Identity, PeerCertificates, Shown},
};
use dstack_rpc::{Client, Endpoint};
use rustls::{ClientConfig, crypto::aws_lc_rs};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use testbed::{Stack, anonymous, connect, now, program::Program};

const TWENTY_YEARS: u64 = 20 * 366 * 24 * 3600;

/// Takes any server: a client that looks at certificates gets nothing from this KMS anyway.
#[derive(Debug)]
struct Careless;

impl PeerCertificates for Careless {
    fn accept(&self, _: &Shown<'_>) -> Result<(), rustls::Error> {
        Ok(())
    }
}

fn careless(url: &str, identity: &Identity) -> KmsClient<Client> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.to_pkcs8_der().to_vec()));
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ByRule::new(Careless, provider)))
        .with_client_auth_cert(identity.chain.clone(), key)
        .unwrap();
    KmsClient(Client::new(Endpoint::parse(url).unwrap()).with_tls(config))
}

/// The answer to a guest whose certificate is valid under any clock.
async fn ask_carelessly(stack: &Stack, url: &str) -> Result<AppKeyResponse, RpcError> {
    let answer = KmsClient(anonymous(url)).get_temp_ca_cert(&Empty {}).await.unwrap();
    let authority = CertificateAuthority::load(&answer.temp_ca_cert, CertKey::from_pem(&answer.temp_ca_key).unwrap()).unwrap();
    let validity = Validity { not_before: now() - TWENTY_YEARS, not_after: now() + TWENTY_YEARS };
    let identity = stack.guest(1).identity_with(&authority, None, None, validity);
    careless(url, &identity).get_app_key(&GetAppKeyRequest { api_version: 1, ..Default::default() }).await
}

async fn disk_key(stack: &Stack) -> Vec<u8> {
    let kms = stack.kms().await;
    let request = GetAppKeyRequest { api_version: 1, ..Default::default() };
    let keys = connect(&kms.url, &stack.guest(1)).await.get_app_key(&request).await.unwrap();
    kms.stop().await;
    keys.disk_crypt_key
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kms_whose_clock_is_ten_years_off_releases_nothing_and_recovers() {
    let stack = Stack::start().await;
    let before = disk_key(&stack).await;
    for offset in ["+10y", "-10y"] {
        let kms = Program::start_at(&stack, offset);

        let error = ask_carelessly(&stack, &kms.url).await.unwrap_err();

        assert!(["kms/evidence-refused", "kms/collateral-unavailable"].contains(&error.code.as_str()), "{offset}: {error:?}");
        let log = std::fs::read_to_string(&kms.log).unwrap();
        assert!(log.contains("clock"), "{offset}: the operator is not told about the clock:\n{log}");
        kms.must_end_gracefully();

        assert_eq!(disk_key(&stack).await, before, "{offset}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kms_that_was_made_under_a_wrong_clock_serves_under_the_right_one() {
    for offset in ["+10y", "-10y"] {
        let stack = Stack::start().await;
        let kms = Program::start_at(&stack, offset);
        let root = KmsClient(anonymous(&kms.url)).get_meta(&Empty {}).await.unwrap().k256_pubkey;
        kms.must_end_gracefully();

        assert!(!disk_key(&stack).await.is_empty());

        let kms = stack.kms().await;
        assert_eq!(KmsClient(kms.anonymous()).get_meta(&Empty {}).await.unwrap().k256_pubkey, root, "{offset}");
    }
}
