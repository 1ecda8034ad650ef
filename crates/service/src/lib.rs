//! The life of a daemon: configuration, telemetry, signals, readiness, files, clock; and text that strangers wrote.
//!
//! A program's `main` reads: [`telemetry::init`], [`config::load`], open what it serves, [`readiness::announce`],
//! run until [`shutdown_signal`].

pub mod clock;
pub mod config;
pub mod directories;
pub mod fs;
pub mod log_file;
pub mod readiness;
pub mod report;
mod signals;
pub mod telemetry;
pub mod text;

pub use signals::shutdown_signal;
