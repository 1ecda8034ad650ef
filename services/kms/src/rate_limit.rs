//! How often one source and one app may call.
//!
//! A source is counted before anything is done for it, an app once it has proven to be that app. Both tables are bounded: when one is
//! full, those that have been quiet are forgotten, and if none has, newcomers share one place.

use std::{
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use dstack_api::RpcError;
use dstack_manifest::AppId;
use dstack_rpc::{Caller, Peer};
use governor::{DefaultKeyedRateLimiter, Quota};

use crate::config::LimitsFile;

/// Sources and apps that are remembered, each.
const MAX_KEYS: usize = 65_536;

struct Table<K: Hash + Eq + Clone> {
    limiter: DefaultKeyedRateLimiter<K>,
    /// Stands for all that have no place.
    overflow: K,
    limited: AtomicU64,
}

impl<K: Hash + Eq + Clone> Table<K> {
    fn new(per_second: u32, overflow: K) -> Self {
        let quota = Quota::per_second(NonZeroU32::new(per_second).unwrap_or(NonZeroU32::MIN));
        Self { limiter: DefaultKeyedRateLimiter::keyed(quota), overflow, limited: AtomicU64::new(0) }
    }

    fn admits(&self, key: &K) -> bool {
        if self.limiter.len() >= MAX_KEYS {
            self.limiter.retain_recent();
        }
        let key = if self.limiter.len() >= MAX_KEYS { &self.overflow } else { key };
        let is_admitted = self.limiter.check_key(key).is_ok();
        if !is_admitted {
            self.limited.fetch_add(1, Ordering::Relaxed);
        }
        is_admitted
    }
}

/// The limits in force.
pub(crate) struct RateLimiter {
    sources: Table<IpAddr>,
    apps: Table<AppId>,
}

impl RateLimiter {
    pub(crate) fn new(limits: &LimitsFile) -> Self {
        Self {
            sources: Table::new(limits.per_source, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
            apps: Table::new(limits.per_app, AppId::new([0xff; 20])),
        }
    }

    /// Whether this source may call now. Peers on this machine's own sockets are not counted.
    fn admits_source(&self, peer: Peer) -> bool {
        match peer {
            Peer::Tcp(address) => self.sources.admits(&network_of(address.ip())),
            Peer::Unix { .. } | Peer::Vsock { .. } => true,
        }
    }

    /// Lets an app that has proven who it is call.
    ///
    /// Errors: too often.
    pub(crate) fn admit_app(&self, app_id: &AppId) -> Result<(), RpcError> {
        if self.apps.admits(app_id) { Ok(()) } else { Err(too_often("this app")) }
    }

    /// Calls that were refused: of sources, of apps.
    pub(crate) fn limited(&self) -> [u64; 2] {
        [self.sources.limited.load(Ordering::Relaxed), self.apps.limited.load(Ordering::Relaxed)]
    }
}

fn too_often(who: &str) -> RpcError {
    RpcError::new("kms/rate-limited", format!("{who} calls too often"), "wait a second, then try again")
}

/// One customer of a provider has a whole IPv6 network of 64 bits.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address @ IpAddr::V4(_) => address,
    }
}

/// Refuses the calls of a source that calls too often, before their body is read.
pub(crate) async fn per_source(State(limiter): State<Arc<RateLimiter>>, caller: Caller, request: Request, next: Next) -> Response {
    if limiter.admits_source(caller.peer) {
        return next.run(request).await;
    }
    let mut response = dstack_rpc::error_response(&too_often("this address"));
    *response.status_mut() = axum::http::StatusCode::TOO_MANY_REQUESTS;
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    fn limiter() -> RateLimiter {
        RateLimiter::new(&LimitsFile { per_source: 3, per_app: 2, ..LimitsFile::default() })
    }

    fn from(address: &str) -> Peer {
        Peer::Tcp((address.parse::<IpAddr>().unwrap(), 1).into())
    }

    #[test]
    fn one_source_is_limited_and_others_are_not() {
        let limiter = limiter();
        for _ in 0..3 {
            assert!(limiter.admits_source(from("192.0.2.1")));
        }

        assert!(!limiter.admits_source(from("192.0.2.1")));
        assert!(!limiter.admits_source(from("::ffff:192.0.2.1")), "the same address in its other form");
        assert!(limiter.admits_source(from("192.0.2.2")));
        assert_eq!(limiter.limited(), [2, 0]);
    }

    #[test]
    fn a_network_counts_as_one_source() {
        let limiter = limiter();
        for last in 1..=3 {
            assert!(limiter.admits_source(from(&format!("2001:db8::{last}"))));
        }

        assert!(!limiter.admits_source(from("2001:db8::ffff")));
        assert!(limiter.admits_source(from("2001:db8:0:1::1")));
    }

    #[test]
    fn an_app_is_limited_wherever_it_calls_from() {
        let limiter = limiter();
        let (one, two) = (AppId::new([1; 20]), AppId::new([2; 20]));
        assert!(limiter.admit_app(&one).is_ok() && limiter.admit_app(&one).is_ok());

        assert_eq!(limiter.admit_app(&one).unwrap_err().code, "kms/rate-limited");
        assert!(limiter.admit_app(&two).is_ok());
    }

    #[test]
    fn the_table_of_sources_is_bounded() {
        let limiter = limiter();
        for number in 0..70_000_u32 {
            limiter.admits_source(Peer::Tcp((IpAddr::V4((0x0a00_0000 + number).into()), 1).into()));
        }

        assert!(limiter.sources.limiter.len() <= MAX_KEYS + 1);
    }
}
