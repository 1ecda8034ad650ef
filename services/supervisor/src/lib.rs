//! Keeps processes running independently of the daemon that asked for them.
//!
//! The process table is on disk, one file per process, replaced atomically. Processes are started in their own process
//! group with their output redirected straight into files, so they survive this daemon; the next one finds them again by
//! pid, start time and boot id. Wire contract: [`dstack_api::supervisor`]. Trust: whoever may open the socket (0600)
//! may run any program as this user.

mod api;
mod config;
mod ending;
mod error;
mod identity;
mod launch;
mod supervisor;
mod table;

pub use api::router;
pub use config::Config;
pub use error::Error;
pub use supervisor::Supervisor;
