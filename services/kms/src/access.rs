//! Tokens of the plain-HTTP listeners, and what a foreign page may not make a browser do.

mod htpasswd;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use dstack_api::{RpcError, UserFacing};
use http::{HeaderMap, StatusCode, header};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use htpasswd::Users;

const MIN_TOKEN_BYTES: usize = 16;

/// A token file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// Not readable.
    #[error("reading the token file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A line of a password file.
    #[error("{} line {line} is not user:hash with a hash of bcrypt of cost 4 to 14", path.display())]
    User {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// A password file without users.
    #[error("{} names no user", path.display())]
    NoUsers {
        /// The file.
        path: PathBuf,
    },
    /// Too short to be one.
    #[error("the first line of {} has fewer than {MIN_TOKEN_BYTES} characters", path.display())]
    Short {
        /// The file.
        path: PathBuf,
    },
}

impl UserFacing for AccessError {
    fn code(&self) -> &'static str {
        match self {
            Self::Read { .. } | Self::Short { .. } => "kms/token-file",
            Self::User { .. } | Self::NoUsers { .. } => "kms/htpasswd-file",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Read { path, .. } | Self::Short { path } => {
                format!("write a random token of at least {MIN_TOKEN_BYTES} characters to {} (mode 600)", path.display())
            }
            Self::User { path, .. } | Self::NoUsers { path } => format!("write the users with htpasswd -B {} NAME", path.display()),
        }
    }
}

/// Whom a listener lets in.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    /// SHA-256 of the token, so that the comparison has one length; `None` lets everyone in.
    token: Option<[u8; 32]>,
    /// Users who may show their password instead.
    users: Option<Users>,
}

impl Gate {
    /// The gate with the token in `file`; open without one.
    pub(crate) fn open(file: Option<&Path>) -> Result<Self, AccessError> {
        let Some(path) = file else { return Ok(Self { token: None, users: None }) };
        let text = std::fs::read_to_string(path).map_err(|source| AccessError::Read { path: path.to_owned(), source })?;
        let text = Zeroizing::new(text);
        let token = text.lines().next().unwrap_or_default().trim();
        if token.len() < MIN_TOKEN_BYTES {
            return Err(AccessError::Short { path: path.to_owned() });
        }
        Ok(Self { token: Some(Sha256::digest(token).into()), users: None })
    }

    /// The gate for the users in `file` as well.
    pub(crate) fn with_users(self, file: Option<&Path>) -> Result<Self, AccessError> {
        let users = file.map(Users::open).transpose()?;
        Ok(Self { users, ..self })
    }

    /// Whether callers must show a token.
    pub(crate) fn needs_token(&self) -> bool {
        self.token.is_some()
    }

    /// Whether `shown` is the token, or none is needed.
    pub(crate) fn admits(&self, shown: &str) -> bool {
        match &self.token {
            Some(token) => Sha256::digest(shown).ct_eq(token).into(),
            None => self.users.is_none(),
        }
    }

    fn admits_headers(&self, headers: &HeaderMap) -> bool {
        (self.token.is_none() && self.users.is_none()) || shown_token(headers).is_some_and(|token| self.admits(&token))
    }

    async fn admits_user(&self, headers: &HeaderMap) -> bool {
        let (Some(users), Some(credentials)) = (&self.users, basic_credentials(headers)) else { return false };
        match credentials.split_once(':') {
            Some((user, password)) => users.admits(user, password).await,
            None => false,
        }
    }
}

/// `Authorization: Bearer`, `X-Admin-Token`, or the password of `Authorization: Basic`.
fn shown_token(headers: &HeaderMap) -> Option<Zeroizing<String>> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(token) = text("x-admin-token") {
        return Some(Zeroizing::new(token.trim().to_owned()));
    }
    let (scheme, value) = text(header::AUTHORIZATION.as_str())?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Zeroizing::new(value.trim().to_owned()));
    }
    let credentials = basic_credentials(headers)?;
    credentials.split_once(':').map(|(_, password)| Zeroizing::new(password.to_owned()))
}

/// `user:password` of `Authorization: Basic`.
fn basic_credentials(headers: &HeaderMap) -> Option<Zeroizing<String>> {
    let (scheme, value) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let credentials = scheme.eq_ignore_ascii_case("basic").then(|| STANDARD.decode(value.trim()).ok()).flatten()?;
    String::from_utf8(credentials).ok().map(Zeroizing::new)
}

/// Whether a request comes from a page of another site; programs send no origin.
pub(crate) fn is_foreign(headers: &HeaderMap) -> bool {
    let text = |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("\u{0}"));
    let host = text(header::HOST).unwrap_or_default();
    let is_ours = |origin: &str| origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")) == Some(host);
    let same_site = headers.get("sec-fetch-site").is_none_or(|site| matches!(site.as_bytes(), b"same-origin" | b"none"));
    !(text(header::ORIGIN).is_none_or(is_ours) && same_site)
}

/// Lets a call pass that shows the token and does not come from another site's page.
pub(crate) async fn require_token(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    if is_foreign(request.headers()) {
        let error = RpcError::new(
            "kms/foreign-origin",
            "requests of another site's page are refused",
            "open the page under the address it is called with",
        );
        return refuse(StatusCode::FORBIDDEN, &error);
    }
    if !gate.admits_headers(request.headers()) && !gate.admits_user(request.headers()).await {
        let error = RpcError::new(
            "kms/token",
            "the token of this listener is missing or wrong",
            "send Authorization: Bearer with the token of the token file, or Basic where it has users",
        );
        return refuse(StatusCode::UNAUTHORIZED, &error);
    }
    next.run(request).await
}

fn refuse(status: StatusCode, error: &RpcError) -> Response {
    let mut response = dstack_rpc::error_response(error);
    *response.status_mut() = status;
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn gate() -> (tempfile::TempDir, Gate) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "0123456789abcdef\nsecond line\n").unwrap();
        let gate = Gate::open(Some(&path)).unwrap();
        (directory, gate)
    }

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn the_token_is_read_from_each_form() {
        let (_directory, gate) = gate();
        let basic = format!("Basic {}", STANDARD.encode("admin:0123456789abcdef"));
        for (name, value) in
            [("authorization", "Bearer 0123456789abcdef"), ("x-admin-token", "0123456789abcdef"), ("authorization", &basic)]
        {
            assert!(gate.admits_headers(&headers(name, value)), "{value}");
        }
        for (name, value) in [("authorization", "Bearer 0123456789abcdeF"), ("authorization", "0123456789abcdef"), ("x-admin-token", "")] {
            assert!(!gate.admits_headers(&headers(name, value)), "{value}");
        }
        assert!(!gate.admits_headers(&HeaderMap::new()));
    }

    #[test]
    fn a_short_or_absent_file_lets_nobody_in() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        assert!(matches!(Gate::open(Some(&path)), Err(AccessError::Read { .. })));
        std::fs::write(&path, "short\n").unwrap();
        assert!(matches!(Gate::open(Some(&path)), Err(AccessError::Short { .. })));
    }

    #[test]
    fn pages_of_other_sites_are_told_apart() {
        let mut own = headers("host", "127.0.0.1:8000");
        assert!(!is_foreign(&own));
        own.insert(header::ORIGIN, HeaderValue::from_static("http://127.0.0.1:8000"));
        assert!(!is_foreign(&own));
        own.insert(header::ORIGIN, HeaderValue::from_static("http://evil.example"));
        assert!(is_foreign(&own));
        assert!(is_foreign(&headers("sec-fetch-site", "cross-site")));
    }
}
