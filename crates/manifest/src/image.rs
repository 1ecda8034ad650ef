//! `metadata.json` of an OS image.

use serde::{Deserialize, Serialize};

/// Largest `metadata.json` a reader accepts.
pub const MAX_IMAGE_METADATA_BYTES: u64 = 64 << 10;

/// Describes the files of an OS image directory; names are relative to it. Bound by `sha256sum.txt`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMetadata {
    /// Firmware.
    pub bios: String,
    /// Firmware for SEV-SNP, where the image has one.
    #[serde(default, rename = "bios-sev", skip_serializing_if = "Option::is_none")]
    pub bios_sev: Option<String>,
    /// Kernel.
    pub kernel: String,
    /// Initial RAM disk.
    pub initrd: String,
    /// Root file system with its verity tree.
    pub rootfs: String,
    /// Kernel command line; measured.
    pub cmdline: String,
    /// Release, such as `0.7.0`.
    pub version: String,
    /// Commit the image was built from.
    #[serde(default)]
    pub git_revision: String,
    /// The host share is read-only; true for every image since 0.3.
    #[serde(default)]
    pub shared_ro: bool,
    /// Development flavour: may run under the software TEE.
    #[serde(default)]
    pub is_dev: bool,
    /// Which OVMF event layout the firmware writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ovmf_variant: Option<String>,
    /// dm-verity root of `rootfs`, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs_hash: Option<String>,
    /// Packages were not those of the lock file; a development image only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unlocked: bool,
}
