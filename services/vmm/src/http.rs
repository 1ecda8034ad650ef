//! The HTTP surface: who may call, the console, logs, and the two services.

use std::{fs, net::IpAddr, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Query, Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::get,
};
use dstack_api::{RpcError, guest_api::ProxiedGuestApiServer, vmm::VmmServer, wire};
use dstack_rpc::{GetPolicy, error_response, mount};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::{
    Config, Vmm, VmmError,
    api::{self, Api},
    guest_relay::{self, GuestRelay},
    serial::{LogRequest, stream_log},
};

const PAGE: &str = include_str!("console/index.html");
const SCRIPT: &str = include_str!("console/console.js");
const STYLE: &str = include_str!("console/console.css");
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";
const DEFAULT_LINES: usize = 10_000;
const MAX_LINES: usize = 100_000;

struct Gate {
    /// SHA-256 of the token, so that the comparison has one length; `None` lets everyone in.
    token: Option<[u8; 32]>,
    hosts: Vec<String>,
}

/// Everything that is served at [`Config::address`].
///
/// Errors: the token file cannot be read or is empty.
pub fn router(vmm: &Arc<Vmm>) -> Result<Router, VmmError> {
    let gate = Arc::new(Gate::new(&vmm.config)?);
    let guarded = mount(wire::PRPC_BASE, VmmServer(Arc::new(Api(Arc::clone(vmm)))), GetPolicy::ReadOnly(api::READ_ONLY))
        .merge(mount("/guest", ProxiedGuestApiServer(Arc::new(GuestRelay(Arc::clone(vmm)))), GetPolicy::ReadOnly(guest_relay::READ_ONLY)))
        .merge(Router::new().route("/logs", get(logs)).with_state(Arc::clone(vmm)))
        .layer(from_fn_with_state(Arc::clone(&gate), require_token));
    // The console itself is the same for everyone and shows nothing without the token.
    let page = PAGE.replace("{{TITLE}}", &title(&vmm.config.node_name));
    let open = Router::new()
        .route("/", get(async move || asset("text/html; charset=utf-8", page.clone())))
        .route("/console.js", get(async || asset("text/javascript; charset=utf-8", SCRIPT)))
        .route("/console.css", get(async || asset("text/css; charset=utf-8", STYLE)));
    Ok(guarded.merge(open).layer(from_fn_with_state(gate, require_own_site)))
}

impl Gate {
    fn new(config: &Config) -> Result<Self, VmmError> {
        let mut hosts: Vec<String> = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned).to_vec();
        hosts.extend(config.allowed_hosts.iter().map(|host| host.to_ascii_lowercase()));
        match config.address.ip() {
            IpAddr::V4(ip) => hosts.push(ip.to_string()),
            IpAddr::V6(ip) => hosts.push(format!("[{ip}]")),
        }
        let file = &config.auth.token_file;
        if file.as_os_str().is_empty() {
            return Ok(Self { token: None, hosts });
        }
        let text = Zeroizing::new(fs::read_to_string(file).map_err(VmmError::io("reading", file))?);
        let token = text.lines().next().unwrap_or_default().trim();
        if token.len() < 16 {
            return Err(VmmError::field("auth.token_file", "its first line must be a token of at least 16 characters"));
        }
        Ok(Self { token: Some(Sha256::digest(token).into()), hosts })
    }

    fn check_site(&self, request: &Request) -> Result<(), RpcError> {
        let text = |name: header::HeaderName| request.headers().get(name).map(|value| value.to_str().unwrap_or("\u{0}"));
        let host = text(header::HOST).or_else(|| request.uri().host()).unwrap_or_default();
        let origin = text(header::ORIGIN);
        let is_ours = |origin: &str| origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")) == Some(host);
        let site = text(header::HeaderName::from_static("sec-fetch-site"));
        let same_site = site.is_none_or(|site| matches!(site, "same-origin" | "none"));
        if self.knows_host(host) && origin.is_none_or(is_ours) && same_site {
            return Ok(());
        }
        let (origin, host) = (dstack_service::text::clean(origin.unwrap_or_default(), 100), dstack_service::text::clean(host, 100));
        let cause = format!("requests from {origin:?} for host {host:?} are refused");
        Err(RpcError::new("vmm/foreign-origin", cause, "use http://127.0.0.1, or add the host name to allowed_hosts"))
    }

    fn knows_host(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        self.hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

/// Refuses what another site makes a browser send: foreign origins, and names that were rebound to our address.
async fn require_own_site(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    match gate.check_site(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => refuse(StatusCode::FORBIDDEN, error),
    }
}

async fn require_token(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    if let Some(expected) = &gate.token
        && !bearer(request.headers()).is_some_and(|given| bool::from(Sha256::digest(given).ct_eq(expected)))
    {
        let mut response = refuse(
            StatusCode::UNAUTHORIZED,
            RpcError::new("vmm/unauthorized", "the access token is missing or wrong", "send Authorization: Bearer <token>"),
        );
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return response;
    }
    next.run(request).await
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ").map(str::trim)
}

fn refuse(status: StatusCode, error: RpcError) -> Response {
    let mut response = error_response(&error);
    *response.status_mut() = status;
    response
}

fn title(node_name: &str) -> String {
    let name: String = node_name.chars().filter(|character| character.is_alphanumeric() || " -_.".contains(*character)).collect();
    if name.is_empty() { "dstack-vmm".to_owned() } else { format!("{name} | dstack-vmm") }
}

fn asset(content_type: &'static str, text: impl Into<Body>) -> Response {
    let mut response = Response::new(text.into());
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[derive(Deserialize)]
struct LogQuery {
    id: String,
    #[serde(default)]
    follow: String,
    #[serde(default)]
    ansi: String,
    lines: Option<usize>,
    #[serde(default)]
    ch: String,
}

async fn logs(State(vmm): State<Arc<Vmm>>, Query(query): Query<LogQuery>) -> Response {
    let row = match vmm.row(&query.id) {
        Ok(row) => row,
        Err(error) => return error_response(&error.into()),
    };
    let dir = vmm.dir(&row.id);
    let path = match query.ch.as_str() {
        "" | "serial" => dir.serial_log(),
        "stdout" => dir.stdout_log(),
        "stderr" => dir.stderr_log(),
        other => {
            let error = VmmError::field("ch", format!("{:?} is none of serial, stdout, stderr", dstack_service::text::clean(other, 32)));
            return error_response(&error.into());
        }
    };
    let is_set = |text: &str| matches!(text, "1" | "true");
    let lines = query.lines.unwrap_or(DEFAULT_LINES).min(MAX_LINES);
    let request = LogRequest { path, lines, follow: is_set(&query.follow), ansi: is_set(&query.ansi) };
    let mut response = Response::new(Body::from_stream(stream_log(request)));
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_compared_without_port_and_case() {
        let gate = Gate { token: None, hosts: vec!["localhost".to_owned(), "[::1]".to_owned()] };

        for host in ["localhost", "LOCALHOST:9080", "[::1]:9080", "[::1]"] {
            assert!(gate.knows_host(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example:9080", "127.0.0.1"] {
            assert!(!gate.knows_host(host), "{host}");
        }
    }

    #[test]
    fn a_node_name_cannot_carry_markup() {
        assert_eq!(title("<script>x"), "scriptx | dstack-vmm");
    }
}
