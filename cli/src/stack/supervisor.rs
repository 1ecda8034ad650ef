//! Client of the supervisor.

use std::path::Path;

use dstack_api::supervisor::{Answer, ProcessConfig, ProcessInfo};
use dstack_rpc::{Client, Endpoint};
use http::{HeaderMap, HeaderValue, Method, header};
use serde::de::DeserializeOwned;

use crate::failure::{Failure, Outcome};

/// Speaks to the supervisor of one stack.
#[derive(Debug, Clone)]
pub(super) struct Supervisor {
    client: Client,
}

impl Supervisor {
    /// The supervisor behind a socket; nothing is contacted yet.
    ///
    /// Errors: the path is not absolute.
    pub(super) fn at(socket: &Path) -> Outcome<Self> {
        let endpoint = Endpoint::parse(&format!("unix:{}", socket.display()))?;
        Ok(Self { client: Client::new(endpoint) })
    }

    /// Whether it answers.
    pub(super) async fn is_up(&self) -> bool {
        self.call::<String>(Method::GET, "/ping", Vec::new()).await.is_ok()
    }

    /// Starts a process that it does not know yet.
    ///
    /// Errors: refused.
    pub(super) async fn deploy(&self, config: &ProcessConfig) -> Outcome {
        let body = serde_json::to_vec(config).map_err(|error| Failure::new("cli/internal", error.to_string(), "report this defect"))?;
        self.call(Method::POST, "/deploy", body).await
    }

    /// A process, if it is known.
    ///
    /// Errors: no answer.
    pub(super) async fn info(&self, id: &str) -> Outcome<Option<ProcessInfo>> {
        self.call(Method::GET, &format!("/info/{id}"), Vec::new()).await
    }

    /// Every process.
    ///
    /// Errors: no answer.
    pub(super) async fn list(&self) -> Outcome<Vec<ProcessInfo>> {
        self.call(Method::GET, "/list", Vec::new()).await
    }

    /// Stops a process and forgets it; what is not known is no error.
    ///
    /// Errors: refused.
    pub(super) async fn remove(&self, id: &str) -> Outcome {
        let Some(info) = self.info(id).await? else { return Ok(()) };
        if info.state.pid.is_some() || info.state.started {
            self.call::<()>(Method::POST, &format!("/stop/{id}"), Vec::new()).await?;
        }
        self.call(Method::DELETE, &format!("/remove/{id}"), Vec::new()).await
    }

    /// Stops every process, then itself.
    ///
    /// Errors: refused.
    pub(super) async fn shut_down(&self) -> Outcome {
        self.call(Method::POST, "/shutdown", Vec::new()).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Vec<u8>) -> Outcome<T> {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let answer = self.client.request(method, path, headers, body).await?;
        match serde_json::from_slice::<Answer<T>>(&answer.body) {
            Ok(Answer::Data(data)) => Ok(data),
            Ok(Answer::Error(error)) => {
                Err(Failure::new("stack/supervisor-refused", error, "look into supervisor.log in the stack's logs folder"))
            }
            Err(error) => {
                let cause = format!("the supervisor's answer to {path} is malformed: {error}");
                Err(Failure::new("supervisor/malformed", cause, "restart the stack with `dstack down` and `dstack up`"))
            }
        }
    }
}
