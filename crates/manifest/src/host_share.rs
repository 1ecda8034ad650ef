//! The files a host hands to its guest, and how large each may be. Everything in them is untrusted until measured.

/// Volume label of the FAT32 disk that carries the files.
pub const VOLUME_LABEL: &str = "DSTACKSHR";

/// One file of the share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedFile {
    /// File name, no directory.
    pub name: &'static str,
    /// Largest size a guest accepts, in bytes.
    pub max_bytes: u64,
    /// Whether a guest refuses to boot without it.
    pub required: bool,
}

/// The application's document; measured as `compose-hash`.
pub const APP_COMPOSE: SharedFile = SharedFile { name: "app-compose.json", max_bytes: 50 << 20, required: true };
/// Addresses and the VM configuration; not measured, so only availability may depend on it.
pub const SYS_CONFIG: SharedFile = SharedFile { name: ".sys-config.json", max_bytes: 32 << 10, required: true };
/// App id and instance seed; measured through `app-id` and `instance-id`.
pub const INSTANCE_INFO: SharedFile = SharedFile { name: ".instance_info", max_bytes: 10 << 10, required: false };
/// The sealed environment.
pub const ENCRYPTED_ENV: SharedFile = SharedFile { name: ".encrypted-env", max_bytes: 256 << 10, required: false };
/// Opaque to us, not measured.
pub const USER_CONFIG: SharedFile = SharedFile { name: ".user-config", max_bytes: 50 << 20, required: false };

/// All files, in the order they are copied.
pub const FILES: [SharedFile; 5] = [APP_COMPOSE, SYS_CONFIG, INSTANCE_INFO, ENCRYPTED_ENV, USER_CONFIG];
