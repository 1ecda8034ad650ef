//! Lifecycle of confidential VMs on one host.
//!
//! What the VMM knows is in one SQLite database ([`db`]); a VM's directory holds only what QEMU and the guest read. QEMU
//! runs under the supervisor, so VMs go on while the VMM is away; [`Vmm::open`] reconciles database, directories and
//! processes. A request is checked as a whole before anything is written ([`admission`]); what fails later is undone.
//!
//! Trust boundary: clients need the access token; guests are hostile, everything from them is bounded and stripped of
//! control characters. Nothing here is trusted by guests or verifiers: a VMM can deny service, not read secrets.

mod admission;
mod api;
mod config;
mod db;
mod error;
mod guest_relay;
mod host_api;
mod host_share;
mod http;
mod images;
mod launch;
mod lifecycle;
mod monitor;
mod qemu;
mod serial;
mod status;
mod tls;
mod vm_dir;
mod vmm;
mod vsock;

pub use config::Config;
pub use error::VmmError;
pub use http::router;
pub use qemu::{
    Accelerator, Gpu, LaunchPlan, Nic, NicBackend, PortForward, Tee, VsockDevice,
    probe::{Probed, probe_accelerator, probe_version},
};
pub use vmm::Vmm;
