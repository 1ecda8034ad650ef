//! The local stack: supervisor, software TEE, KMS and VMM as ordinary processes of this machine.
//!
//! `up` writes configurations into the stack's home, starts the supervisor and lets it keep the others. What was chosen once
//! (ports) is kept in `stack.toml`, so that `up` can be repeated and other commands find the services.

mod configs;
mod down;
mod health;
mod local;
mod programs;
mod settings;
mod supervisor;
mod up;

pub(crate) use down::down;
pub(crate) use local::LocalStack;
pub(crate) use up::up;
