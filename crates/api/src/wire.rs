//! Paths, ports and names that programs on different machines agree on. They are those of existing clients and cannot change.

/// Below which each service answers `POST <base>/<Method>`.
pub const PRPC_BASE: &str = "/prpc";
/// Below which the VMM answers its guests, and guests their VMM.
pub const VSOCK_BASE: &str = "/api";
/// Context id of the host.
pub const HOST_CID: u32 = 2;
/// vsock port of the VMM's host API, by default.
pub const HOST_API_PORT: u32 = 10_000;
/// vsock port of the guest agent's API for its host.
pub const GUEST_API_PORT: u32 = 8000;
/// TCP port of the guest agent's API for everybody.
pub const AGENT_PORT: u16 = 8090;
/// Where an app or its guest agent hands out evidence over a caller's nonce.
pub const EVIDENCE_PATH: &str = "/.well-known/dstack/evidence";

/// What a guest tells its host: names of events, and the texts that mean more than words.
pub mod guest_event {
    /// Where the boot is.
    pub const BOOT_PROGRESS: &str = "boot.progress";
    /// [`BOOT_PROGRESS`]: the application runs.
    pub const BOOT_DONE: &str = "done";
    /// Why the boot does not go on.
    pub const BOOT_ERROR: &str = "boot.error";
    /// Marks of the guest's own clock, `{"<phase>": <ms since its kernel started>}`.
    pub const BOOT_TIMELINE: &str = "boot.timeline";
    /// The document that names the instance.
    pub const INSTANCE_INFO: &str = "instance.info";
    /// Where the shutdown is.
    pub const SHUTDOWN_PROGRESS: &str = "shutdown.progress";
    /// [`SHUTDOWN_PROGRESS`]: the guest ends because it was asked to.
    pub const POWERING_OFF: &str = "powering off";
}
