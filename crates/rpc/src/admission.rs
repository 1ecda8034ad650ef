//! Who may hold a connection: strangers compete with strangers, and nobody crowds out everybody.
//!
//! A TLS handshake that has not ended costs its peer nothing. When too many wait, the oldest one of the source with the most gives way: an
//! honest handshake takes milliseconds and is never old. Established connections are counted by source.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::Peer;

/// What a peer cannot multiply at will: an IPv4 address, or an IPv6 network of 64 bits. Local peers are one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    V4([u8; 4]),
    V6([u8; 8]),
    Local,
}

impl Source {
    pub(crate) fn of(peer: &Peer) -> Self {
        let Peer::Tcp(address) = peer else { return Self::Local };
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h, ..] = ip.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

#[derive(Default)]
struct Waiting {
    next: u64,
    count: usize,
    by_source: BTreeMap<Source, BTreeMap<u64, oneshot::Sender<()>>>,
}

impl Waiting {
    fn remove(&mut self, source: Source, id: u64) {
        let Some(waiting) = self.by_source.get_mut(&source) else { return };
        if waiting.remove(&id).is_some() {
            self.count -= 1;
        }
        if waiting.is_empty() {
            self.by_source.remove(&source);
        }
    }

    /// Dropping its sender tells the oldest handshake of the largest source to end.
    fn displace(&mut self) {
        let largest = self.by_source.iter().max_by_key(|(_, waiting)| waiting.len()).map(|(source, _)| *source);
        let Some(source) = largest else { return };
        if let Some(id) = self.by_source.get(&source).and_then(|waiting| waiting.keys().next().copied()) {
            self.remove(source, id);
        }
    }
}

/// The peers of one listener.
pub(crate) struct Admission {
    handshakes: usize,
    per_source: usize,
    waiting: Mutex<Waiting>,
    established: Mutex<BTreeMap<Source, usize>>,
}

impl Admission {
    /// `handshakes`: unfinished ones at a time. `per_source`: established connections of one source.
    pub(crate) fn new(handshakes: usize, per_source: usize) -> Arc<Self> {
        Arc::new(Self { handshakes: handshakes.max(1), per_source, waiting: Mutex::default(), established: Mutex::default() })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn established(&self) -> MutexGuard<'_, BTreeMap<Source, usize>> {
        self.established.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a handshake that begins, and makes room for it.
    pub(crate) fn begin(self: &Arc<Self>, source: Source) -> Handshake {
        let (sender, displaced) = oneshot::channel();
        let mut waiting = self.waiting();
        let id = waiting.next;
        waiting.next += 1;
        waiting.count += 1;
        waiting.by_source.entry(source).or_default().insert(id, sender);
        if waiting.count > self.handshakes {
            waiting.displace();
        }
        drop(waiting);
        Handshake { admission: Arc::clone(self), source, id, displaced }
    }

    /// Counts a connection; none if its source has as many as one may have.
    pub(crate) fn establish(self: &Arc<Self>, source: Source) -> Option<Established> {
        let mut established = self.established();
        let count = established.entry(source).or_default();
        if *count >= self.per_source {
            return None;
        }
        *count += 1;
        drop(established);
        Some(Established { admission: Arc::clone(self), source })
    }
}

/// A handshake that has not ended.
pub(crate) struct Handshake {
    admission: Arc<Admission>,
    source: Source,
    id: u64,
    displaced: oneshot::Receiver<()>,
}

impl Handshake {
    /// Runs the handshake; none if it has to give way.
    pub(crate) async fn run<T>(mut self, handshake: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            ended = handshake => Some(ended),
            _ = &mut self.displaced => None,
        }
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.admission.waiting().remove(self.source, self.id);
    }
}

/// A connection that counts.
pub(crate) struct Established {
    admission: Arc<Admission>,
    source: Source,
}

impl Drop for Established {
    fn drop(&mut self) {
        let mut established = self.admission.established();
        if let Some(count) = established.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                established.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::of(&Peer::Tcp(text.parse().unwrap()))
    }

    #[test]
    fn an_ipv6_network_is_one_source_and_a_mapped_address_is_ipv4() {
        assert_eq!(source("[2001:db8:1:2:3::1]:1"), source("[2001:db8:1:2:ffff::2]:2"));
        assert_ne!(source("[2001:db8:1:2::1]:1"), source("[2001:db8:1:3::1]:1"));
        assert_eq!(source("[::ffff:192.0.2.1]:1"), source("192.0.2.1:9"));
        assert_ne!(source("192.0.2.1:1"), source("192.0.2.2:1"));
    }

    #[tokio::test]
    async fn the_oldest_handshake_of_the_largest_source_gives_way() {
        let admission = Admission::new(3, 1);
        let (crowd, other) = (source("192.0.2.1:1"), source("192.0.2.2:1"));
        let lone = admission.begin(other);
        let first = admission.begin(crowd);
        let second = admission.begin(crowd);

        let third = admission.begin(crowd);

        assert_eq!(first.run(std::future::pending::<()>()).await, None);
        for handshake in [lone, second, third] {
            assert_eq!(handshake.run(std::future::ready(7)).await, Some(7));
        }
        let waiting = admission.waiting();
        assert_eq!((waiting.count, waiting.by_source.len()), (0, 0));
    }

    #[test]
    fn a_source_has_its_share_of_connections_and_gets_it_back() {
        let admission = Admission::new(1, 2);
        let (crowd, other) = (source("192.0.2.1:1"), source("192.0.2.2:1"));
        let held: Vec<_> = (0..2).map(|_| admission.establish(crowd).unwrap()).collect();

        assert!(admission.establish(crowd).is_none());
        assert!(admission.establish(other).is_some());

        drop(held);
        assert!(admission.establish(crowd).is_some());
        assert!(admission.established().is_empty());
    }
}
