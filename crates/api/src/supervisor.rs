//! The supervisor's API: HTTP/1.1 + JSON over a Unix socket.
//!
//! `POST /deploy` ([`ProcessConfig`]), `POST /start/<id>`, `POST /stop/<id>`, `DELETE /remove/<id>`, `GET /list`,
//! `GET /info/<id>`, `GET /ping`, `POST /clear`, `POST /shutdown`. Every reply is 200 with an [`Answer`].
//! `POST /stop/<id>?grace_ms=N` sets the time between SIGTERM and SIGKILL and answers when the process has ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `{"data": …}` or `{"error": "…"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer<T> {
    /// The call's result; may be null.
    Data(T),
    /// Why the call was refused.
    Error(String),
}

/// One process to keep.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessConfig {
    /// Unique name, 1 to 128 of `[A-Za-z0-9._-]`.
    pub id: String,
    /// For people.
    pub name: String,
    /// Program, absolute path.
    pub command: String,
    /// Arguments without the program.
    pub args: Vec<String>,
    /// Added to an empty environment.
    pub env: BTreeMap<String, String>,
    /// Working directory; empty means `/`.
    pub cwd: String,
    /// File that standard output is appended to; empty discards it.
    pub stdout: String,
    /// File that standard error is appended to; empty discards it.
    pub stderr: String,
    /// File that receives the process id; empty means none.
    pub pidfile: String,
    /// The guest's vsock CID where the process is a VM.
    pub cid: Option<u32>,
    /// Opaque to the supervisor.
    pub note: String,
}

/// Where a process is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessStatus {
    /// Alive.
    Running,
    /// Stopped by request.
    Stopped,
    /// Ended by itself: raw wait status.
    Exited(i32),
    /// Could not be started, or ended while its status could not be learned.
    Error(String),
}

/// State of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessState {
    /// Where it is in its life.
    pub status: ProcessStatus,
    /// Whether it is wanted to run.
    pub started: bool,
    /// Process id while running.
    pub pid: Option<u32>,
    /// Unix seconds.
    pub started_at: Option<u64>,
    /// Unix seconds.
    pub stopped_at: Option<u64>,
    /// How it ended, in words, such as `killed by SIGKILL`; empty while it runs.
    #[serde(default)]
    pub ended: String,
    /// Which resource limits are applied, in words.
    #[serde(default)]
    pub limits: String,
}

/// A process with its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// As deployed.
    pub config: ProcessConfig,
    /// Now.
    pub state: ProcessState,
}
