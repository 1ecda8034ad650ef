//! Somebody between two KMSs: genuine, allowed evidence on one side, keys of its own on the other.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic on purpose")]

mod testbed;

use std::{path::Path, sync::Arc};

use dstack_api::{
    RpcError,
    kms::{
        AppId, AppKeyResponse, Empty, GetAppKeyRequest, GetKmsKeyRequest, GetMetaResponse, GetTempCaCertResponse, KmsClient,
        KmsKeyResponse, KmsKeys, KmsRpc, KmsServer, OnboardClient, OnboardRequest, PublicKeyResponse, SignCertRequest, SignCertResponse,
    },
};
use dstack_attester::{Attester, SimulatedDevice};
use dstack_key_hierarchy::{Epochs, RootKeys};
use dstack_kms::{
    OnboardingServer,
    config::{FirstStart, Settings},
};
use dstack_ra_tls::{
    CaProfile, CertKey, CertificateAuthority, LeafProfile, Validity, ra_tls_report_data,
    tls::{self, Identity},
};
use dstack_rpc::{Caller, Client, Endpoint, GetPolicy, Listener};
use rand_core::OsRng;
use testbed::{Stack, der_of, machine::Machine, now};

/// What the impostor claims about who sends the keys.
#[derive(Clone, Copy, PartialEq)]
enum Claim {
    /// The genuine KMS's certificate, signed by itself.
    GenuineCertificate,
    /// Its own certificate and signature: it is an allowed KMS then.
    OwnCertificate,
    /// No signature, as older implementations.
    Unsigned,
    /// Its own certificate, and a signature over another nonce.
    OtherNonce,
}

struct Impostor {
    claim: Claim,
    root: RootKeys,
    temp: CertificateAuthority,
    leaf: Vec<u8>,
    leaf_key: CertKey,
    genuine: Vec<u8>,
}

/// The signed bytes, written out again from services/kms/SPEC.md §3.
fn transcript(nonce: &[u8], receiver: &[u8], sender: &[u8], answer: &KmsKeyResponse) -> Vec<u8> {
    let keys = prost::Message::encode_to_vec(answer);
    let mut bytes = Vec::new();
    for part in [b"dstack-kms-replication-v1".as_slice(), nonce, receiver, sender, &keys] {
        bytes.extend(u32::try_from(part.len()).unwrap().to_be_bytes());
        bytes.extend(part);
    }
    bytes
}

fn never<T>() -> Result<T, RpcError> {
    Err(RpcError::internal("not asked"))
}

impl KmsRpc for Impostor {
    type Caller = Caller;

    async fn get_kms_key(&self, caller: Caller, request: GetKmsKeyRequest) -> Result<KmsKeyResponse, RpcError> {
        let receiver = caller.tls_chain.first().unwrap();
        let mut answer = KmsKeyResponse {
            temp_ca_key: self.temp.key_pem().to_string(),
            keys: vec![KmsKeys {
                ca_key: self.root.ca.to_pkcs8_pem().unwrap().to_string(),
                k256_key: self.root.k256.scalar().expose().to_vec(),
            }],
            epochs: Epochs::first(&self.root.ca).encode().to_vec(),
            ..KmsKeyResponse::default()
        };
        let sender = if self.claim == Claim::GenuineCertificate { &self.genuine } else { &self.leaf };
        let nonce = if self.claim == Claim::OtherNonce { vec![0; 32] } else { request.nonce };
        if self.claim != Claim::Unsigned {
            answer.signature = self.leaf_key.sign(&transcript(&nonce, receiver, sender, &answer)).unwrap();
            answer.sender_certificate = sender.clone();
        }
        Ok(answer)
    }

    async fn get_temp_ca_cert(&self, _: Caller, _: Empty) -> Result<GetTempCaCertResponse, RpcError> {
        Ok(GetTempCaCertResponse {
            temp_ca_cert: self.temp.certificate_pem().to_owned(),
            temp_ca_key: self.temp.key_pem().to_string(),
            ca_cert: self.temp.certificate_pem().to_owned(),
            nonce: Vec::new(),
        })
    }

    async fn get_app_key(&self, _: Caller, _: GetAppKeyRequest) -> Result<AppKeyResponse, RpcError> {
        never()
    }
    async fn get_app_env_encrypt_pub_key(&self, _: Caller, _: AppId) -> Result<PublicKeyResponse, RpcError> {
        never()
    }
    async fn get_meta(&self, _: Caller, _: Empty) -> Result<GetMetaResponse, RpcError> {
        never()
    }
    async fn sign_cert(&self, _: Caller, _: SignCertRequest) -> Result<SignCertResponse, RpcError> {
        never()
    }
}

/// Starts an impostor on `machine`, whose evidence is genuine and allowed; returns its address.
async fn impostor(machine: &Machine, claim: Claim, genuine: Vec<u8>) -> String {
    let validity = Validity::starting(now(), 3600);
    let root = RootKeys::generate(&mut OsRng);
    let authority = CertificateAuthority::self_signed(CaProfile::KmsRoot, CertKey::generate().unwrap(), validity).unwrap();
    let temp = CertificateAuthority::self_signed(CaProfile::ClientTemp, CertKey::generate().unwrap(), validity).unwrap();
    let leaf_key = CertKey::generate().unwrap();
    let spki = leaf_key.spki_der();
    let (endpoint, log, config) =
        (machine.endpoint.clone(), machine.runtime_log.clone(), std::fs::read_to_string(&machine.sys_config).unwrap());
    let report_data = ra_tls_report_data(&spki);
    let quoted = tokio::task::spawn_blocking(move || {
        let device = SimulatedDevice::connect(&endpoint).unwrap();
        Attester::with_device(Box::new(device), &log).unwrap().quote(&report_data, &config).unwrap()
    });
    let evidence = quoted.await.unwrap().attestation.stripped().encode();
    let leaf = authority.issue_leaf(&spki, &LeafProfile::kms_rpc("kms.test", Some(evidence)), validity).unwrap();
    let identity = Identity { chain: vec![leaf.clone()], key: CertKey::from_pem(&leaf_key.to_pem()).unwrap() };
    let config = tls::server(&identity, temp.certificate_der()).unwrap();
    let listener = Listener::tls(([127, 0, 0, 1], 0).into(), config).await.unwrap();
    let url = format!("https://{}/prpc", listener.local_addr().unwrap());
    let service = Impostor { claim, root, temp, leaf: leaf.to_vec(), leaf_key, genuine };
    let router = dstack_rpc::mount("/prpc", KmsServer(Arc::new(service)), GetPolicy::Refuse);
    tokio::spawn(dstack_rpc::serve(listener, router, std::future::pending()));
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_count_only_when_the_attested_peer_sent_them() {
    let stack = Stack::start().await;
    let machines = (stack.machine("source").await, stack.machine("between").await, stack.machine("replica").await);
    stack.allow_kms(&[], &machines.0.mr_aggregated);
    let genuine = stack.kms_with(stack.settings_on(&machines.0)).await;
    assert!(KmsClient(genuine.anonymous()).get_meta(&Empty {}).await.is_ok());
    let certificate = der_of(&std::fs::read_to_string(stack.path("source-kms/rpc.crt")).unwrap()).to_vec();
    let mut file = stack.settings_on(&machines.2);
    file.onboard.first_start = FirstStart::Wait;
    file.onboard.listen = ([127, 0, 0, 1], 0).into();
    let replica = OnboardingServer::open(&Settings::check(file, Path::new("kms.toml")).unwrap()).await.unwrap().unwrap();
    let calls = OnboardClient(Client::new(Endpoint::parse(&format!("http://{}/prpc", replica.local_addr().unwrap())).unwrap()));
    tokio::spawn(replica.run(std::future::pending()));

    for (claim, code) in [
        (Claim::GenuineCertificate, "kms/source-not-attested-peer"),
        (Claim::Unsigned, "kms/source-answer"),
        (Claim::OtherNonce, "kms/source-not-attested-peer"),
    ] {
        let source_url = impostor(&machines.1, claim, certificate.clone()).await;

        let error = calls.onboard(&OnboardRequest { source_url, domain: "replica.test".into() }).await.unwrap_err();

        assert_eq!(error.code, code, "{error}");
        assert!(!stack.path("replica-kms").exists());
    }
    // The transcript of this file is the one of the specification: with it, an allowed KMS is a source.
    let source_url = impostor(&machines.1, Claim::OwnCertificate, certificate).await;
    calls.onboard(&OnboardRequest { source_url, domain: "replica.test".into() }).await.unwrap();
}
