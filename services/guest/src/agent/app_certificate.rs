//! `app_cert` of `Info`: a certificate with evidence, made in the background when first asked for and then kept.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use dstack_ra_tls::CertConfig;
use tokio::sync::watch;

use super::tls_key::TlsDesk;

/// A caller waits this long for the first one; some clients give up after three seconds.
const PATIENCE: Duration = Duration::from_millis(1500);
/// After a failure it is not tried again for this long, whoever asks.
const PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
enum State {
    Absent,
    Running,
    Ready(String),
    Failed(Instant),
}

/// The certificate.
#[derive(Debug)]
pub(crate) struct AppCertificate {
    state: watch::Sender<State>,
}

impl AppCertificate {
    pub(crate) fn new() -> Self {
        Self { state: watch::Sender::new(State::Absent) }
    }

    /// The chain, PEM; empty as long as there is none.
    pub(crate) async fn get(&self, desk: &Arc<TlsDesk>) -> String {
        let start = self.state.send_if_modified(|state| {
            let due = match state {
                State::Absent => true,
                State::Failed(at) => at.elapsed() >= PAUSE,
                State::Running | State::Ready(_) => false,
            };
            if due {
                *state = State::Running;
            }
            due
        });
        if start {
            let (state, desk) = (self.state.clone(), Arc::clone(desk));
            tokio::spawn(async move {
                state.send_replace(request(&desk).await);
            });
        }
        let mut watch = self.state.subscribe();
        let settled = tokio::time::timeout(PATIENCE, watch.wait_for(|state| !matches!(state, State::Running))).await;
        match settled {
            Ok(Ok(state)) => match &*state {
                State::Ready(chain) => chain.clone(),
                _ => String::new(),
            },
            _ => String::new(),
        }
    }
}

async fn request(desk: &Arc<TlsDesk>) -> State {
    let config = CertConfig { subject: "demo-cert".to_owned(), usage_client_auth: true, ext_quote: true, ..CertConfig::default() };
    let task = tokio::spawn({
        let desk = Arc::clone(desk);
        async move { desk.issue(config).await }
    });
    match task.await {
        Ok(Ok(issued)) => State::Ready(issued.chain.concat()),
        Ok(Err(error)) => {
            tracing::warn!(code = error.code, error = error.message, "no certificate for the application yet");
            State::Failed(Instant::now())
        }
        Err(_) => State::Failed(Instant::now()),
    }
}
