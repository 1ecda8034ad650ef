//! The containers' API: `DstackGuest` at the root of the Unix sockets.
//!
//! Every container that has the socket may derive every key of the application: the application is one trust domain.

use std::sync::Arc;

use axum::Router;
use dstack_api::{
    Dispatch as _, RpcError,
    guest_agent::{
        AppInfo, DstackGuestRpc, DstackGuestServer, EmitEventArgs, Empty, GetKeyArgs, GetKeyResponse, GetQuoteResponse, GetTlsKeyArgs,
        GetTlsKeyResponse, RawQuoteArgs, WorkerVersion,
    },
};
use dstack_key_hierarchy::{PathKey, PathKeyAlgorithm};
use dstack_ra_tls::CertConfig;
use dstack_rpc::{Caller, GetPolicy, error_response, mount};

use super::{
    evidence::{Asker, padded_report_data},
    state::{State, version},
};

const MAX_TEXT_BYTES: usize = 64 << 10;
/// `GET` is safe here: no browser reaches a Unix socket.
const GET: GetPolicy = GetPolicy::ReadOnly(&["Info", "Version", "GetKey", "GetQuote", "GetTlsKey"]);

struct Inside(Arc<State>);

pub(crate) fn router(state: Arc<State>) -> Router {
    let unknown = |uri: axum::http::Uri| async move {
        let method = uri.path().rsplit('/').next().unwrap_or_default().to_owned();
        error_response(&RpcError::unknown_method(DstackGuestServer::<Inside>::SERVICE, &method))
    };
    mount("", DstackGuestServer(Arc::new(Inside(state))), GET).fallback(unknown)
}

impl DstackGuestRpc for Inside {
    type Caller = Caller;

    async fn get_tls_key(&self, _caller: Caller, request: GetTlsKeyArgs) -> Result<GetTlsKeyResponse, RpcError> {
        let config = CertConfig {
            org_name: None,
            subject: request.subject,
            subject_alt_names: request.alt_names,
            usage_server_auth: request.usage_server_auth,
            usage_client_auth: request.usage_client_auth,
            ext_quote: request.usage_ra_tls,
            ext_app_info: request.with_app_info,
            not_before: request.not_before,
            not_after: request.not_after,
        };
        let issued = self.0.tls.issue(config).await?;
        Ok(GetTlsKeyResponse { key: issued.key.to_string(), certificate_chain: issued.chain })
    }

    async fn get_key(&self, _caller: Caller, request: GetKeyArgs) -> Result<GetKeyResponse, RpcError> {
        let refuse = |cause: &str, fix: &str| Err(RpcError::new("agent/key-request", cause, fix));
        if request.path.len().max(request.purpose.len()) > MAX_TEXT_BYTES {
            return refuse("path or purpose has more than 65536 bytes", "choose a shorter one");
        }
        let algorithm = match request.algorithm.parse() {
            // Messages can be hashed before they are signed; a key cannot.
            Ok(PathKeyAlgorithm::Secp256k1Prehashed) | Err(_) => return refuse("Unsupported algorithm", "use secp256k1 or ed25519"),
            Ok(algorithm) => algorithm,
        };
        let epochs = &self.0.application.epoch_keys;
        let Some(of) = epochs.iter().find(|keys| request.epoch == 0 || keys.epoch == request.epoch) else {
            return refuse("there is no key of this epoch", "ask for an epoch in readable_epochs, or for the current one (0)");
        };
        let key = PathKey::derive(&of.k256_key, of.k256_signature.as_ref(), &request.path, &request.purpose, algorithm);
        let key = key.map_err(|error| RpcError::internal(error.to_string()))?;
        Ok(GetKeyResponse {
            key: key.key().expose().to_vec(),
            signature_chain: key.signature_chain().to_vec(),
            epoch: of.epoch,
            readable_epochs: epochs.iter().rev().map(|keys| keys.epoch).filter(|epoch| *epoch != 0).collect(),
        })
    }

    async fn get_quote(&self, _caller: Caller, request: RawQuoteArgs) -> Result<GetQuoteResponse, RpcError> {
        quote(&self.0, &request.report_data, Asker::Inside).await
    }

    async fn emit_event(&self, _caller: Caller, request: EmitEventArgs) -> Result<Empty, RpcError> {
        let version = self.0.application.event_version();
        self.0.evidence.emit(request.event, request.payload, version).await?;
        Ok(Empty {})
    }

    async fn info(&self, _caller: Caller, _request: Empty) -> Result<AppInfo, RpcError> {
        self.0.info(Asker::Inside).await
    }

    async fn version(&self, _caller: Caller, _request: Empty) -> Result<WorkerVersion, RpcError> {
        Ok(version())
    }
}

/// A quote over `report_data` with all that a verifier asks for. `attestation` stays empty: it would repeat the rest.
pub(crate) async fn quote(state: &State, report_data: &[u8], asker: Asker) -> Result<GetQuoteResponse, RpcError> {
    let report_data = padded_report_data(report_data)?;
    let quoted = state.evidence.quote(report_data, asker).await?;
    Ok(GetQuoteResponse {
        quote: quoted.quote,
        event_log: quoted.event_log,
        report_data: report_data.to_vec(),
        vm_config: state.application.sys_config.vm_config.clone(),
        attestation: Vec::new(),
    })
}
