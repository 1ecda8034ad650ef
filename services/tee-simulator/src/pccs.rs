//! The collateral service: the paths of Intel's PCS version 4 and of a PCCS, for TDX.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Query, State},
    response::{IntoResponse as _, Response},
    routing::get,
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Deserialize;
use time::OffsetDateTime;

use crate::{
    collateral::{CollateralSet, SignedDocument},
    vendor::{FMSPC, Vendor},
};

pub(crate) fn router(vendor: Arc<Vendor>) -> Router {
    Router::new()
        .route("/sgx/certification/v4/pckcrl", get(pck_crl))
        .route("/sgx/certification/v4/rootcacrl", get(root_crl))
        .route("/tdx/certification/v4/tcb", get(tcb))
        .route("/tdx/certification/v4/qe/identity", get(qe_identity))
        .with_state(vendor)
}

#[derive(Deserialize)]
struct CrlQuery {
    ca: String,
    #[serde(default)]
    encoding: String,
}

async fn pck_crl(State(vendor): State<Arc<Vendor>>, Query(query): Query<CrlQuery>) -> Response {
    if query.ca != "platform" {
        return StatusCode::NOT_FOUND.into_response();
    }
    with_collateral(&vendor, |set| {
        let body = if query.encoding == "der" { set.pck_crl } else { hex::encode(set.pck_crl).into_bytes() };
        answer("application/pkix-crl", "sgx-pck-crl-issuer-chain", &vendor.pck_ca_chain_pem(), body)
    })
}

async fn root_crl(State(vendor): State<Arc<Vendor>>) -> Response {
    with_collateral(&vendor, |set| (StatusCode::OK, hex::encode(set.root_crl)).into_response())
}

#[derive(Deserialize)]
struct TcbQuery {
    fmspc: String,
}

async fn tcb(State(vendor): State<Arc<Vendor>>, Query(query): Query<TcbQuery>) -> Response {
    if !query.fmspc.eq_ignore_ascii_case(&hex::encode(FMSPC)) {
        return StatusCode::NOT_FOUND.into_response();
    }
    with_collateral(&vendor, |set| {
        answer("application/json", "tcb-info-issuer-chain", &vendor.tcb_chain_pem(), signed("tcbInfo", &set.tcb_info))
    })
}

async fn qe_identity(State(vendor): State<Arc<Vendor>>) -> Response {
    with_collateral(&vendor, |set| {
        let body = signed("enclaveIdentity", &set.qe_identity);
        answer("application/json", "sgx-enclave-identity-issuer-chain", &vendor.tcb_chain_pem(), body)
    })
}

fn with_collateral(vendor: &Vendor, answer: impl FnOnce(CollateralSet) -> Response) -> Response {
    match CollateralSet::sign(vendor, OffsetDateTime::now_utc().unix_timestamp()) {
        Ok(set) => answer(set),
        Err(error) => {
            tracing::error!(%error, "collateral cannot be signed");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn signed(name: &str, document: &SignedDocument) -> Vec<u8> {
    format!("{{\"{name}\":{},\"signature\":\"{}\"}}", document.text, hex::encode(document.signature)).into_bytes()
}

fn answer(content_type: &'static str, chain_header: &'static str, chain_pem: &str, body: Vec<u8>) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Ok(value) = HeaderValue::from_str(&percent_encode(chain_pem)) {
        headers.insert(HeaderName::from_static(chain_header), value);
    }
    response
}

fn percent_encode(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
