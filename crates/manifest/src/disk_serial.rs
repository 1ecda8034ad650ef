//! Serial numbers of a VM's disks: the VMM sets them, the guest finds its disks by them, whatever their order.

/// Root file system with its hash tree.
pub const ROOT: &str = "dstack-rootfs";
/// The instance's encrypted disk.
pub const DATA: &str = "dstack-data";
/// The host share.
pub const SHARE: &str = "dstack-share";
/// Verity volumes; their number from 0 follows, in the order of app-compose.json.
pub const VOLUME_PREFIX: &str = "dstack-vol";
