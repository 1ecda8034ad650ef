//! The life of a daemon: config, telemetry, signals, readiness, version.
