//! Client of the supervisor's API, see [`dstack_api::supervisor`].

use std::{path::Path, time::Duration};

use dstack_api::{
    UserFacing,
    supervisor::{Answer, ProcessConfig, ProcessInfo},
};
use http::{HeaderMap, HeaderValue, Method, header};
use serde::de::DeserializeOwned;

use crate::{Client, ClientError, Endpoint, EndpointError};

/// Added to the grace of a stop before the call is given up.
const STOP_MARGIN: Duration = Duration::from_secs(15);

/// A call to the supervisor that did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SupervisorError {
    /// No answer.
    #[error("calling the supervisor")]
    Call(#[from] ClientError),
    /// The socket path cannot be used.
    #[error("the supervisor's socket path")]
    Endpoint(#[from] EndpointError),
    /// An answer that is none.
    #[error("the supervisor's answer cannot be read: {0}")]
    Unreadable(String),
    /// The supervisor said no.
    #[error("supervisor: {0}")]
    Refused(String),
}

impl UserFacing for SupervisorError {
    fn code(&self) -> &'static str {
        match self {
            Self::Call(_) => "supervisor/unreachable",
            Self::Endpoint(_) => "supervisor/bad-socket",
            Self::Unreadable(_) => "supervisor/bad-answer",
            Self::Refused(_) => "supervisor/refused",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Call(_) => "start dstack-supervisor and check that its socket path is the configured one",
            Self::Endpoint(_) => "give the absolute path of the supervisor's socket",
            Self::Unreadable(_) => "check that the socket belongs to dstack-supervisor",
            Self::Refused(_) => "look at the process with GET /info/<id> and at the supervisor's log",
        }
        .to_owned()
    }
}

/// Client of one supervisor.
#[derive(Debug, Clone)]
pub struct SupervisorClient {
    client: Client,
}

impl SupervisorClient {
    /// `socket`: absolute path.
    ///
    /// Errors: a path that is not absolute.
    pub fn new(socket: &Path) -> Result<Self, SupervisorError> {
        let endpoint = Endpoint::parse(&format!("unix:{}", socket.display()))?;
        Ok(Self { client: Client::new(endpoint) })
    }

    /// Starts a process under a new or stopped id.
    ///
    /// Errors: it runs already, or cannot be started.
    pub async fn deploy(&self, config: &ProcessConfig) -> Result<(), SupervisorError> {
        let body = serde_json::to_vec(config).map_err(|error| SupervisorError::Unreadable(error.to_string()))?;
        self.call(&self.client, Method::POST, "/deploy", body).await
    }

    /// Starts a known process again.
    ///
    /// Errors: unknown, or cannot be started.
    pub async fn start(&self, id: &str) -> Result<(), SupervisorError> {
        self.call(&self.client, Method::POST, &format!("/start/{id}"), Vec::new()).await
    }

    /// Stops a process: SIGTERM, after `grace` SIGKILL. Returns when it has ended. Stopping a stopped one succeeds.
    ///
    /// Errors: unknown, or it outlives SIGKILL.
    pub async fn stop(&self, id: &str, grace: Duration) -> Result<(), SupervisorError> {
        let client = self.client.clone().with_timeout(grace + STOP_MARGIN);
        self.call(&client, Method::POST, &format!("/stop/{id}?grace_ms={}", grace.as_millis()), Vec::new()).await
    }

    /// Forgets a process that does not run. Unknown ones are fine.
    ///
    /// Errors: it runs.
    pub async fn remove(&self, id: &str) -> Result<(), SupervisorError> {
        self.call(&self.client, Method::DELETE, &format!("/remove/{id}"), Vec::new()).await
    }

    /// All processes, by id.
    ///
    /// Errors: no answer.
    pub async fn list(&self) -> Result<Vec<ProcessInfo>, SupervisorError> {
        self.call(&self.client, Method::GET, "/list", Vec::new()).await
    }

    /// One process.
    ///
    /// Errors: no answer.
    pub async fn info(&self, id: &str) -> Result<Option<ProcessInfo>, SupervisorError> {
        self.call(&self.client, Method::GET, &format!("/info/{id}"), Vec::new()).await
    }

    /// Whether it answers.
    ///
    /// Errors: no answer.
    pub async fn ping(&self) -> Result<(), SupervisorError> {
        self.call::<String>(&self.client, Method::GET, "/ping", Vec::new()).await.map(|_| ())
    }

    /// Forgets every process that does not run.
    ///
    /// Errors: no answer.
    pub async fn clear(&self) -> Result<(), SupervisorError> {
        self.call(&self.client, Method::POST, "/clear", Vec::new()).await
    }

    /// Stops every process, then the supervisor itself.
    ///
    /// Errors: a process outlives SIGKILL.
    pub async fn shutdown(&self) -> Result<(), SupervisorError> {
        let client = self.client.clone().with_timeout(Duration::from_secs(120));
        self.call(&client, Method::POST, "/shutdown", Vec::new()).await
    }

    async fn call<T: DeserializeOwned>(&self, client: &Client, method: Method, path: &str, body: Vec<u8>) -> Result<T, SupervisorError> {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let answer = client.request(method, path, headers, body).await?;
        match serde_json::from_slice(&answer.body) {
            Ok(Answer::Data(data)) => Ok(data),
            Ok(Answer::Error(error)) => Err(SupervisorError::Refused(error)),
            Err(error) => Err(SupervisorError::Unreadable(error.to_string())),
        }
    }
}
