//! QEMU: what to run ([`LaunchPlan`]), with which accelerator ([`probe`]), and how to talk to it ([`qmp`]).

mod argv;
mod plan;
pub(crate) mod probe;
pub(crate) mod qmp;

pub use plan::{Accelerator, Gpu, LaunchPlan, Nic, NicBackend, PortForward, Tee, VsockDevice};

#[cfg(test)]
mod tests;
