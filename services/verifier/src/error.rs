//! Requests that get no verdict.

use std::time::Duration;

use dstack_api::UserFacing;
use dstack_verdict::InputError;
use http::StatusCode;

/// Why a request gets no verdict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It holds no evidence.
    #[error(transparent)]
    NoEvidence(#[from] InputError),
    /// Longer than allowed.
    #[error("the request has more than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// The body came too slowly, or not at all.
    #[error("the request's body did not arrive whole")]
    Incomplete,
    /// More requests than allowed.
    #[error("{limit} requests are being answered, no more at a time")]
    Busy {
        /// The limit.
        limit: usize,
    },
    /// Collateral or an image took too long.
    #[error("no verdict within {} s", .0.as_secs())]
    TooSlow(Duration),
    /// No such route.
    #[error("there is no {path} here")]
    NoRoute {
        /// The path asked for.
        path: String,
    },
    /// Our own fault.
    #[error("the verification broke off")]
    BrokeOff,
}

impl Refusal {
    /// Who acts next: the one who asks (4xx), or nobody but time and the operator (5xx).
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoEvidence(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Incomplete => StatusCode::REQUEST_TIMEOUT,
            Self::Busy { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::TooSlow(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::NoRoute { .. } => StatusCode::NOT_FOUND,
            Self::BrokeOff => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Every code, for metrics.
    pub(crate) const CODES: [&str; 7] = [
        "verifier/no-evidence",
        "verifier/too-large",
        "verifier/incomplete",
        "verifier/busy",
        "verifier/too-slow",
        "verifier/no-route",
        "rpc/internal",
    ];
}

impl UserFacing for Refusal {
    fn code(&self) -> &'static str {
        match self {
            Self::NoEvidence(_) => "verifier/no-evidence",
            Self::TooLarge { .. } => "verifier/too-large",
            Self::Incomplete => "verifier/incomplete",
            Self::Busy { .. } => "verifier/busy",
            Self::TooSlow(_) => "verifier/too-slow",
            Self::NoRoute { .. } => "verifier/no-route",
            Self::BrokeOff => "rpc/internal",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::NoEvidence(_) => {
                "send {\"quote\",\"event_log\",\"vm_config\"}, {\"attestation\"} or a saved bundle as JSON; quote and attestation are hex"
            }
            Self::TooLarge { .. } => "send the evidence alone, or raise max_body_kib",
            Self::Incomplete => "send the whole body at once",
            Self::Busy { .. } => "try again in a second, or raise max_requests",
            Self::TooSlow(_) => "try again: what was being fetched may have arrived; the log says what it was",
            Self::NoRoute { .. } => "use POST /verify, GET /health or GET /metrics",
            Self::BrokeOff => "read the service's log; this is a defect worth reporting",
        }
        .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_a_listed_code_a_fix_and_an_error_status() {
        let all = [
            Refusal::NoEvidence(InputError::Empty),
            Refusal::TooLarge { limit: 1 },
            Refusal::Incomplete,
            Refusal::Busy { limit: 1 },
            Refusal::TooSlow(Duration::from_secs(1)),
            Refusal::NoRoute { path: "/x".to_owned() },
            Refusal::BrokeOff,
        ];
        assert_eq!(all.len(), Refusal::CODES.len());
        for refusal in all {
            assert!(Refusal::CODES.contains(&refusal.code()), "{refusal}");
            assert!(!refusal.fix().is_empty() && refusal.status().as_u16() >= 400, "{refusal}");
        }
    }
}
