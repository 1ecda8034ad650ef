//! A vendor, its collateral service, and guests with simulated evidence.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub, missing_docs, reason = "tests panic on purpose; not every test uses everything")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{extract::Request, http::StatusCode, response::IntoResponse as _};
use dstack_attestation::{Attestation, Policy, TrustAnchors, Verifier};
use dstack_event_log::{EventVersion, RuntimeEvent, replay};
use dstack_ra_tls::{
    CaProfile, CertKey, CertificateAuthority, EvidenceVerifier, LeafProfile, Validity, VerificationLimits,
    collateral::{CollateralClient, CollateralLimits},
    ra_tls_report_data,
    tls::Identity,
};
use dstack_rpc::Listener;
use dstack_tee_simulator::{CollateralSet, QuoteBody, QuotingEnclave, Vendor};

pub const NOW: u64 = 1_790_000_000;
pub const FMSPC: [u8; 6] = [0xd5, 0x7a, 0xc0, 0, 0, 0];

pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn vendor_at(now: u64) -> Arc<Vendor> {
    Arc::new(Vendor::generate(i64::try_from(now).unwrap()).unwrap())
}

/// Another vendor.
pub fn stranger() -> Arc<Vendor> {
    vendor_at(NOW)
}

pub fn stranger_now() -> Arc<Vendor> {
    vendor_at(unix_now())
}

/// A vendor and a collateral service that counts requests and can be down. Its documents are signed at the bed's clock.
pub struct Bed {
    pub vendor: Arc<Vendor>,
    address: String,
    requests: Arc<AtomicUsize>,
    is_down: Arc<AtomicBool>,
    clock: Arc<AtomicU64>,
}

impl Bed {
    /// Its clock stands at [`NOW`].
    pub async fn start() -> Self {
        Self::start_at(NOW).await
    }

    /// Its clock stands at this moment, for tests with real TLS.
    pub async fn start_now() -> Self {
        Self::start_at(unix_now()).await
    }

    async fn start_at(now: u64) -> Self {
        let vendor = vendor_at(now);
        let (requests, is_down, clock) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default(), Arc::new(AtomicU64::new(now)));
        let state = (Arc::clone(&vendor), Arc::clone(&requests), Arc::clone(&is_down), Arc::clone(&clock));
        let answer = move |request: Request| {
            let (vendor, requests, is_down, clock) = state.clone();
            async move {
                requests.fetch_add(1, Ordering::SeqCst);
                if is_down.load(Ordering::SeqCst) {
                    return StatusCode::SERVICE_UNAVAILABLE.into_response();
                }
                serve(&vendor, request.uri().path(), clock.load(Ordering::SeqCst))
            }
        };
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(dstack_rpc::serve(listener, axum::Router::new().fallback(answer), std::future::pending()));
        Self { vendor, address, requests, is_down, clock }
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::SeqCst);
    }

    pub fn advance(&self, seconds: u64) {
        self.clock.fetch_add(seconds, Ordering::SeqCst);
    }

    pub fn verifier(&self) -> Verifier {
        let anchors = TrustAnchors::hardware().danger_simulated_root(self.vendor.root_der().to_vec()).unwrap();
        Verifier::new(anchors, Policy::report_only())
    }

    /// A client with a cache of its own that lives by the bed's clock.
    pub fn client(&self) -> CollateralClient {
        let clock = Arc::clone(&self.clock);
        let client = CollateralClient::new(&self.address).unwrap().with_clock(move || clock.load(Ordering::SeqCst));
        client.with_anchors(self.verifier().anchors().clone())
    }

    pub fn verification(&self, limits: CollateralLimits) -> EvidenceVerifier {
        EvidenceVerifier::new(self.verifier(), self.client().with_limits(limits), VerificationLimits::default())
    }

    pub fn verification_now(&self) -> EvidenceVerifier {
        self.verification(CollateralLimits::default())
    }
}

fn serve(vendor: &Vendor, path: &str, now: u64) -> axum::response::Response {
    let set = CollateralSet::sign(vendor, i64::try_from(now).unwrap()).unwrap();
    let signed = |name: &str, document: &dstack_tee_simulator::SignedDocument| {
        format!("{{\"{name}\":{},\"signature\":\"{}\"}}", document.text, hex::encode(document.signature)).into_bytes()
    };
    let (header, chain, body) = match path {
        "/sgx/certification/v4/pckcrl" => ("sgx-pck-crl-issuer-chain", vendor.pck_ca_chain_pem(), set.pck_crl),
        "/sgx/certification/v4/rootcacrl" => ("x-none", String::new(), set.root_crl),
        "/tdx/certification/v4/tcb" => ("tcb-info-issuer-chain", vendor.tcb_chain_pem(), signed("tcbInfo", &set.tcb_info)),
        "/tdx/certification/v4/qe/identity" => {
            ("sgx-enclave-identity-issuer-chain", vendor.tcb_chain_pem(), signed("enclaveIdentity", &set.qe_identity))
        }
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    ([(header, chain.replace('\n', "%0A").replace('+', "%2B"))], body).into_response()
}

/// A guest with a certificate that carries evidence.
pub struct Guest {
    pub leaf: Vec<u8>,
    pub quote: Vec<u8>,
    key: CertKey,
}

impl Guest {
    pub fn new(vendor: &Vendor) -> Self {
        Self::with_lifetime(vendor, 3600)
    }

    pub fn with_lifetime(vendor: &Vendor, seconds: u64) -> Self {
        let key = CertKey::generate().unwrap();
        Self::make(vendor, &key.spki_der(), key, NOW, seconds)
    }

    pub fn now(vendor: &Vendor) -> Self {
        let key = CertKey::generate().unwrap();
        Self::make(vendor, &key.spki_der(), key, unix_now(), 3600)
    }

    /// Good evidence of somebody else's key.
    pub fn with_stolen_evidence(vendor: &Vendor) -> Self {
        Self::make(vendor, &CertKey::generate().unwrap().spki_der(), CertKey::generate().unwrap(), NOW, 3600)
    }

    pub fn stolen_now(vendor: &Vendor) -> Self {
        Self::make(vendor, &CertKey::generate().unwrap().spki_der(), CertKey::generate().unwrap(), unix_now(), 3600)
    }

    fn make(vendor: &Vendor, bound: &[u8], key: CertKey, now: u64, seconds: u64) -> Self {
        let event = |name: &str, payload: &[u8]| RuntimeEvent::new(name, payload, EventVersion::V1);
        let runtime_events = vec![event("app-id", &[0xc0; 20]), event("compose-hash", &[0xc0; 32]), event("boot-mr-done", b"")];
        let event_log: Vec<_> = runtime_events.iter().map(RuntimeEvent::to_event).collect();
        let report_data = ra_tls_report_data(bound);
        let quote = QuotingEnclave::new(vendor).quote(&QuoteBody::new([0xd7; 48], replay(&event_log).unwrap().0, [0; 48], report_data));
        let attestation = Attestation { quote: quote.clone(), event_log, runtime_events, report_data, config: String::new() };
        let profile = LeafProfile::guest_client(attestation.stripped().encode());
        let authority =
            CertificateAuthority::self_signed(CaProfile::ClientTemp, CertKey::generate().unwrap(), Validity::starting(now, seconds))
                .unwrap();
        let leaf = authority.issue_leaf(&key.spki_der(), &profile, Validity::starting(now, seconds)).unwrap().to_vec();
        Self { leaf, quote, key }
    }

    pub fn identity(&self) -> Identity {
        Identity { chain: vec![self.leaf.clone().into()], key: CertKey::from_pem(&self.key.to_pem()).unwrap() }
    }
}

/// `quote` with another PCK chain (DER, leaf first).
pub fn replace_chain(quote: &[u8], chain: &[Vec<u8>]) -> Vec<u8> {
    let start = quote.windows(11).position(|window| window == b"-----BEGIN ").unwrap();
    let pem: String =
        chain.iter().map(|der| format!("-----BEGIN CERTIFICATE-----\n{}-----END CERTIFICATE-----\n", base64_of(der))).collect();
    let old = quote.len() - start;
    let mut changed = quote[..start].to_vec();
    changed.extend_from_slice(pem.as_bytes());
    // Three nested lengths count the chain: of the signature data (u32 after the body), of its certification data, and of the chain itself.
    let body_end = 48 + 584;
    let grow = |bytes: &mut [u8], at: usize| {
        let length = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let length = length as usize + pem.len() - old;
        bytes[at..at + 4].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
    };
    grow(&mut changed, body_end);
    grow(&mut changed, body_end + 4 + 64 + 64 + 2);
    grow(&mut changed, start - 4);
    changed
}

fn base64_of(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap());
    lines.collect::<Vec<_>>().join("\n") + "\n"
}
