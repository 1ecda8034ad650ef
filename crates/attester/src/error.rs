//! What can go wrong while collecting evidence.

use std::path::PathBuf;

use dstack_api::UserFacing;

/// Evidence could not be collected, or an event not measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttesterError {
    /// Neither a TDX guest device nor (where compiled in) a software TEE.
    #[error("this machine has no TEE device")]
    NoTee,
    /// A TEE that this release cannot use.
    #[error("collecting evidence from {device} is not implemented")]
    NotImplemented {
        /// Its device file.
        device: PathBuf,
    },
    /// A TEE whose hardware keeps no key for its guests.
    #[error("the TEE device {device} gives no sealing key")]
    NoSealingKey {
        /// Its name.
        device: &'static str,
    },
    /// A device file.
    #[error("{operation} {}", path.display())]
    Device {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The device answered something unusable.
    #[error("TEE device answers {what}")]
    Answer {
        /// What is wrong with it.
        what: String,
    },
    /// The software TEE refused.
    #[error("software TEE: {reason}")]
    Simulated {
        /// Its words, or why there was no answer.
        reason: String,
    },
    /// The runtime log's files.
    #[error("runtime event log: {operation} {}", path.display())]
    Log {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// A line that is not an event.
    #[error("runtime event log {} is malformed at line {line}", path.display())]
    LogMalformed {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// Something extended RTMR3 beside the log: no evidence of this boot can be believed any more.
    #[error("runtime event log does not replay to RTMR3 (log {replayed}, register {register})")]
    LogOutOfStep {
        /// Hex.
        replayed: String,
        /// Hex.
        register: String,
    },
    /// A name or payload that cannot be logged.
    #[error("event {name:?} cannot be measured: {reason}")]
    Event {
        /// Its name.
        name: String,
        /// Why.
        reason: &'static str,
    },
}

impl UserFacing for AttesterError {
    fn code(&self) -> &'static str {
        match self {
            Self::NoTee => "attester/no-tee",
            Self::NotImplemented { .. } => "attester/not-implemented",
            Self::NoSealingKey { .. } => "attester/no-sealing-key",
            Self::Device { .. } | Self::Answer { .. } => "attester/device",
            Self::Simulated { .. } => "attester/software-tee",
            Self::Log { .. } | Self::LogMalformed { .. } | Self::LogOutOfStep { .. } => "attester/runtime-log",
            Self::Event { .. } => "attester/bad-event",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::NoTee => "start the VM as a TD, or use a development image under the software TEE",
            Self::NotImplemented { .. } => "use a TDX machine",
            Self::NoSealingKey { .. } => "take the sealing key from a local key provider",
            Self::Device { .. } | Self::Answer { .. } => {
                "check the kernel (6.16 or later with TDX guest support) and the host's quoting service"
            }
            Self::Simulated { .. } => "check that the software TEE runs on the host and knows this VM",
            Self::Log { .. } => "check that the log's directory is writable",
            Self::LogMalformed { .. } | Self::LogOutOfStep { .. } => "restart the VM",
            Self::Event { .. } => "use a name of 1 to 256 bytes that is not reserved, and a payload of at most 64 KiB",
        }
        .to_owned()
    }
}
