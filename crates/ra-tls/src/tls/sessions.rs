//! Session stores that forget: rustls's own keep a session until others push it out.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustls::{
    NamedGroup,
    client::{ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue},
    server::StoresServerSessions,
};
use rustls_pki_types::ServerName;

/// Longest time a session is resumed.
pub const MAX_SESSION_AGE: Duration = Duration::from_secs(600);
/// Sessions a server remembers. Each holds its client's chain, up to 20 KiB with evidence.
const SERVER_SESSIONS: usize = 256;
/// Servers a client remembers.
const CLIENT_SERVERS: usize = 16;

type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

struct Stored {
    value: Vec<u8>,
    at: Instant,
}

/// Sessions of one server configuration, by identifier.
pub(super) struct ServerSessions {
    max_age: Duration,
    clock: Clock,
    sessions: Mutex<HashMap<Vec<u8>, Stored>>,
}

impl ServerSessions {
    pub(super) fn new(max_age: Duration) -> Self {
        Self { max_age, clock: Arc::new(Instant::now), sessions: Mutex::default() }
    }

    fn is_young(&self, at: Instant) -> bool {
        (self.clock)().saturating_duration_since(at) < self.max_age
    }
}

impl fmt::Debug for ServerSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerSessions").field("max_age", &self.max_age).finish_non_exhaustive()
    }
}

impl StoresServerSessions for ServerSessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        let at = (self.clock)();
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= SERVER_SESSIONS {
            sessions.retain(|_, stored| self.is_young(stored.at));
        }
        while sessions.len() >= SERVER_SESSIONS {
            let oldest = sessions.iter().min_by_key(|(_, stored)| stored.at).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { break };
            sessions.remove(&oldest);
        }
        sessions.insert(key, Stored { value, at });
        true
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get(key).filter(|stored| self.is_young(stored.at)).map(|stored| stored.value.clone())
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        let stored = self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(key)?;
        self.is_young(stored.at).then_some(stored.value)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

/// Sessions of one client configuration, by server.
pub(super) struct ClientSessions {
    inner: ClientSessionMemoryCache,
    max_age: Duration,
    clock: Clock,
    /// When the newest session of a server was stored. All of a server's sessions end with the oldest handshake they stem from.
    stored: Mutex<HashMap<ServerName<'static>, Instant>>,
}

impl ClientSessions {
    pub(super) fn new(max_age: Duration) -> Self {
        let inner = ClientSessionMemoryCache::new(CLIENT_SERVERS);
        Self { inner, max_age, clock: Arc::new(Instant::now), stored: Mutex::default() }
    }

    /// A full handshake stores sessions of its own age; a resumed one hands on tickets whose handshake may be long ago, so the first
    /// time stays until it is too old.
    fn note(&self, server: &ServerName<'static>) {
        let now = (self.clock)();
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        stored.retain(|_, at| now.saturating_duration_since(*at) < self.max_age);
        if stored.len() < CLIENT_SERVERS {
            stored.entry(server.clone()).or_insert(now);
        }
    }

    fn is_young(&self, server: &ServerName<'_>) -> bool {
        let now = (self.clock)();
        let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        stored.get(&server.to_owned()).is_some_and(|at| now.saturating_duration_since(*at) < self.max_age)
    }
}

impl fmt::Debug for ClientSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSessions").field("max_age", &self.max_age).finish_non_exhaustive()
    }
}

impl ClientSessionStore for ClientSessions {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        self.inner.set_kx_hint(server_name, group);
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        self.inner.kx_hint(server_name)
    }

    fn set_tls12_session(&self, server_name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.note(&server_name);
        self.inner.set_tls12_session(server_name, value);
    }

    fn tls12_session(&self, server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        if self.is_young(server_name) { self.inner.tls12_session(server_name) } else { None }
    }

    fn remove_tls12_session(&self, server_name: &ServerName<'static>) {
        self.inner.remove_tls12_session(server_name);
    }

    fn insert_tls13_ticket(&self, server_name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.note(&server_name);
        self.inner.insert_tls13_ticket(server_name, value);
    }

    fn take_tls13_ticket(&self, server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        if self.is_young(server_name) {
            return self.inner.take_tls13_ticket(server_name);
        }
        while self.inner.take_tls13_ticket(server_name).is_some() {}
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A store whose clock stands at `seconds`.
    fn store() -> (ServerSessions, Arc<AtomicU64>) {
        let (start, seconds) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let clock = Arc::clone(&seconds);
        let now = move || start + Duration::from_secs(clock.load(Ordering::SeqCst));
        (ServerSessions { clock: Arc::new(now), ..ServerSessions::new(Duration::from_secs(600)) }, seconds)
    }

    #[test]
    fn sessions_end_after_their_age() {
        let (store, seconds) = store();
        store.put(vec![1], vec![2]);
        seconds.store(599, Ordering::SeqCst);
        assert_eq!(store.get(&[1]), Some(vec![2]));

        seconds.store(600, Ordering::SeqCst);

        assert_eq!(store.get(&[1]), None);
        assert_eq!(store.take(&[1]), None);
    }

    #[test]
    fn a_full_store_forgets_the_oldest() {
        let (store, seconds) = store();
        for number in 0..=SERVER_SESSIONS {
            seconds.store(u64::try_from(number).unwrap_or(0), Ordering::SeqCst);
            store.put(number.to_be_bytes().to_vec(), vec![]);
        }

        assert_eq!(store.get(&0_usize.to_be_bytes()), None);
        assert!(store.get(&1_usize.to_be_bytes()).is_some() && store.get(&SERVER_SESSIONS.to_be_bytes()).is_some());
    }

    #[test]
    fn taken_sessions_are_gone() {
        let (store, _) = store();
        store.put(vec![1], vec![2]);

        assert_eq!(store.take(&[1]), Some(vec![2]));
        assert_eq!(store.take(&[1]), None);
    }
}
