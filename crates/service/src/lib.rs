//! The life of a daemon: configuration, telemetry, signals, readiness, files.
//!
//! A program's `main` reads: [`telemetry::init`], [`config::load`], open what it serves, [`readiness::announce`],
//! run until [`shutdown_signal`].

pub mod config;
pub mod fs;
pub mod log_file;
pub mod readiness;
pub mod report;
mod signals;
pub mod telemetry;

pub use signals::shutdown_signal;
