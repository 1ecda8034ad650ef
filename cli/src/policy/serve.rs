//! `dstack policy serve`: the webhook's other side.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    routing::{get, post},
};
use dstack_api::policy_webhook::{BOOT_AUTH_APP, BOOT_AUTH_KMS, PolicyAnswer, PolicyServerInfo};
use dstack_authorization::{Subject, WatchedAllowList, answer, server_info};
use dstack_rpc::{Caller, Listener, Peer};

use super::args::PolicyServeArgs;
use crate::{failure::Outcome, output::Output};

const MAX_QUESTION_BYTES: usize = 64 * 1024;

/// Serves until a signal ends it.
pub(super) async fn serve(args: &PolicyServeArgs, output: Output) -> Outcome {
    let list = Arc::new(WatchedAllowList::open(&args.list)?);
    dstack_service::telemetry::init("dstack policy serve");
    let listener = Listener::tcp(args.listen).await?;
    let address = listener.local_addr().unwrap_or(args.listen);
    output.note(&format!("Answering {BOOT_AUTH_APP} and {BOOT_AUTH_KMS} on http://{address} from {}", args.list.display()));
    dstack_rpc::serve(listener, router(list), dstack_service::shutdown_signal()).await;
    Ok(())
}

fn router(list: Arc<WatchedAllowList>) -> Router {
    Router::new()
        .route("/", get(info))
        .route(BOOT_AUTH_APP, post(app))
        .route(BOOT_AUTH_KMS, post(kms))
        .layer(DefaultBodyLimit::max(MAX_QUESTION_BYTES))
        .with_state(list)
}

async fn info(State(list): State<Arc<WatchedAllowList>>) -> Json<PolicyServerInfo> {
    Json(server_info(&list.current()))
}

async fn app(list: State<Arc<WatchedAllowList>>, caller: Caller, body: Bytes) -> (StatusCode, Json<PolicyAnswer>) {
    decide(&list, Subject::App, &caller, &body)
}

async fn kms(list: State<Arc<WatchedAllowList>>, caller: Caller, body: Bytes) -> (StatusCode, Json<PolicyAnswer>) {
    decide(&list, Subject::Kms, &caller, &body)
}

fn decide(list: &WatchedAllowList, subject: Subject, caller: &Caller, body: &[u8]) -> (StatusCode, Json<PolicyAnswer>) {
    let peer = match caller.peer {
        Peer::Tcp(address) => address.to_string(),
        _ => String::new(),
    };
    match answer(&list.current(), subject, body) {
        Ok(told) => {
            tracing::info!(target: "dstack_policy::audit", ?subject, peer, allowed = told.is_allowed, reason = told.reason.as_deref(), "decided");
            (StatusCode::OK, Json(told))
        }
        Err((told, cause)) => {
            tracing::warn!(target: "dstack_policy::audit", ?subject, peer, cause, "the question is not understood");
            (StatusCode::BAD_REQUEST, Json(told))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use std::time::Duration;

    use dstack_api::{UserFacing as _, policy_webhook::PolicyBootInfo};
    use dstack_authorization::{Backend as _, BootFacts, Webhook, parse_boot_info};
    use dstack_rpc::{Client, Endpoint};
    use http::{HeaderMap, Method};

    use super::*;

    fn facts(compose: u8) -> BootFacts {
        let info = PolicyBootInfo {
            tee_variant: "dstack-tdx".into(),
            os_image_hash: "01".repeat(32),
            app_id: "02".repeat(20),
            compose_hash: format!("{compose:02x}").repeat(32),
            device_id: "04".repeat(32),
            tcb_status: "UpToDate".into(),
            ..PolicyBootInfo::default()
        };
        parse_boot_info(&info).unwrap()
    }

    /// Our client at our server: what one writes the other understands.
    #[tokio::test]
    async fn a_kms_gets_the_decisions_of_the_list() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("allow.toml");
        let text = format!(
            "version = 1\ngateway_app_id = \"{}\"\n[[os_images]]\nhash = \"{}\"\n[[apps]]\napp_id = \"{}\"\ncompose_hashes = [\"{}\"]\nany_device = true\n",
            "09".repeat(20),
            "01".repeat(32),
            "02".repeat(20),
            "03".repeat(32)
        );
        std::fs::write(&path, text).unwrap();
        let listener = Listener::tcp(([127, 0, 0, 1], 0).into()).await.unwrap();
        let endpoint = Endpoint::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let list = Arc::new(WatchedAllowList::open(&path).unwrap());
        tokio::spawn(dstack_rpc::serve(listener, router(list), std::future::pending()));
        let webhook = Webhook::new(&endpoint, Duration::from_secs(5), false);

        webhook.refresh().await.unwrap();
        assert_eq!(webhook.gateway_app_id().unwrap().to_string(), "09".repeat(20));
        assert!(webhook.decide(Subject::App, &facts(3)).await.is_ok());
        let denial = webhook.decide(Subject::App, &facts(4)).await.unwrap_err();
        assert_eq!(denial.code(), "kms/policy-denied");
        assert!(denial.to_string().contains("is not allowed for app"), "{denial}");
        assert_eq!(webhook.decide(Subject::Kms, &facts(3)).await.unwrap_err().code(), "kms/policy-denied");

        let client = Client::new(endpoint);
        for body in [b"".to_vec(), b"\xff".to_vec(), vec![b' '; MAX_QUESTION_BYTES + 1]] {
            let answer = client.request(Method::POST, BOOT_AUTH_APP, HeaderMap::new(), body).await.unwrap();
            assert!(answer.status.is_client_error(), "{}", answer.status);
        }
    }
}
