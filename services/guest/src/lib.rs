//! Everything of ours inside the CVM: `dstack-init` (PID 1) and `dstack-guest-agent`.
//!
//! `dstack-init` runs twice. In the initrd it opens the measured root ([`initrd`]); in the root it is PID 1
//! ([`pid_one`]), which starts one child that walks the boot phases. The host, its share, the network and the disk
//! are untrusted: at worst they deny service, and then the host is told in which phase and why.

pub mod agent;
pub mod app_keys;
pub mod block_device;
pub mod boot;
pub mod boot_clock;
pub mod cmdline;
pub mod command;
pub mod console;
pub mod host_notify;
pub mod initrd;
pub mod kernel_modules;
pub mod kms_client;
pub mod kms_trust;
pub mod mounts;
pub mod pid_one;
pub mod small_commands;

mod failure;

pub use failure::describe;
