//! The vendors' services on free ports, with the papers of genuine evidence, and what was asked of them.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use axum::{Router, extract::Request, http::StatusCode, response::IntoResponse as _};
use dstack_attestation::{QuoteCollateral, parse_certificates};
use dstack_rpc::Listener;

/// One answer: a header, if there is one, and the body.
pub type Answer = (Option<(&'static str, String)>, Vec<u8>);

/// A service that answers `GET`, and remembers what it was asked.
pub struct VendorService {
    /// `http://127.0.0.1:port`.
    pub url: String,
    targets: Arc<Mutex<Vec<String>>>,
}

impl VendorService {
    /// Answers each target (path with query) with what `answer` gives, else 404.
    pub async fn start(answer: impl Fn(&str) -> Option<Answer> + Clone + Send + Sync + 'static) -> Self {
        let targets = Arc::<Mutex<Vec<String>>>::default();
        let asked = Arc::clone(&targets);
        let handler = move |request: Request| {
            let target = request.uri().path_and_query().unwrap().as_str().to_owned();
            let found = answer(&target);
            asked.lock().unwrap().push(target);
            async move {
                match found {
                    Some((Some(header), body)) => ([header], body).into_response(),
                    Some((None, body)) => body.into_response(),
                    None => StatusCode::NOT_FOUND.into_response(),
                }
            }
        };
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(dstack_rpc::serve(listener, Router::new().fallback(handler), std::future::pending()));
        Self { url, targets }
    }

    /// AMD's key distribution service, as far as the genuine reports among the test data need it. It has no revocation list.
    pub async fn amd() -> Self {
        let keys = genuine_chip_keys();
        Self::start(move |target| amd_answer(&keys, target)).await
    }

    /// Intel's service for one platform. `tee`: `tdx` or `sgx`; of the other it knows nothing.
    pub async fn intel(tee: &'static str, collateral: QuoteCollateral) -> Self {
        Self::start(move |target| intel_answer(tee, &collateral, target)).await
    }

    /// What was asked, in order.
    #[must_use]
    pub fn targets(&self) -> Vec<String> {
        self.targets.lock().unwrap().clone()
    }

    /// How often it was asked.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.targets.lock().unwrap().len()
    }
}

/// A file of the attestation crate.
fn of_attestation(name: &str) -> Vec<u8> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../attestation")).join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Certificates by the target that asks for them.
fn genuine_chip_keys() -> BTreeMap<String, Vec<u8>> {
    let cases: serde_json::Value = serde_json::from_slice(&of_attestation("tests/testdata/snp/cases.json")).unwrap();
    let mut keys = BTreeMap::new();
    for case in cases.as_array().unwrap().iter().filter(|case| case["kind"] == "VCEK") {
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let (product, fields) = (text(&case["product"]), &case["fields"]);
        let [bootloader, tee, .., snp, microcode] = hex::decode(text(&fields["reported_tcb"])).unwrap()[..] else { panic!("no TCB") };
        let tcb = format!("blSPL={bootloader:02}&teeSPL={tee:02}&snpSPL={snp:02}&ucodeSPL={microcode:02}");
        let target = format!("/vcek/v1/{product}/{}?{tcb}", text(&fields["chip_id"]));
        keys.insert(target, of_attestation(&format!("tests/testdata/snp/{}", text(&case["vek"]))));
    }
    keys
}

fn amd_answer(keys: &BTreeMap<String, Vec<u8>>, target: &str) -> Option<Answer> {
    let chain = target.strip_prefix("/vcek/v1/").and_then(|rest| rest.strip_suffix("/cert_chain"));
    let body = match chain.map(str::to_lowercase).as_deref() {
        Some(product @ ("milan" | "genoa" | "turin")) => {
            let issuer = of_attestation(&format!("intermediates/amd-sev-{product}.der"));
            format!("{}{}", pem(&issuer), pem(&of_attestation(&format!("roots/amd-ark-{product}.der")))).into_bytes()
        }
        _ => keys.get(target)?.clone(),
    };
    Some((None, body))
}

fn pem(der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der));
    assert_eq!(parse_certificates(text.as_bytes()).unwrap(), [der]);
    text
}

fn intel_answer(tee: &str, collateral: &QuoteCollateral, target: &str) -> Option<Answer> {
    let signed = |name: &str, text: &str, signature: &[u8]| {
        format!("{{\"{name}\":{text},\"signature\":\"{}\"}}", hex::encode(signature)).into_bytes()
    };
    let header = |name, chain: &str| Some((name, chain.replace('%', "%25").replace('\n', "%0A").replace('\r', "%0D")));
    let c = collateral;
    let path = target.split('?').next()?;
    if path == "/sgx/certification/v4/pckcrl" {
        return Some((header("sgx-pck-crl-issuer-chain", &c.pck_crl_issuer_chain), c.pck_crl.clone()));
    }
    if path == "/sgx/certification/v4/rootcacrl" {
        return Some((None, hex::encode(&c.root_ca_crl).into_bytes()));
    }
    match path.strip_prefix(&format!("/{tee}/certification/v4/"))? {
        "tcb" => Some((header("tcb-info-issuer-chain", &c.tcb_info_issuer_chain), signed("tcbInfo", &c.tcb_info, &c.tcb_info_signature))),
        "qe/identity" => {
            let body = signed("enclaveIdentity", &c.qe_identity, &c.qe_identity_signature);
            Some((header("sgx-enclave-identity-issuer-chain", &c.qe_identity_issuer_chain), body))
        }
        _ => None,
    }
}
