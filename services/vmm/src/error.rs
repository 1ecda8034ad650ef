//! What a caller of the VMM can be told.

use std::{io, path::PathBuf};

use dstack_api::{RpcError, UserFacing};
use dstack_manifest::AppComposeError;
use dstack_os_image::ImageError;
use dstack_rpc::SupervisorError;

/// A refused request, or one that went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmmError {
    /// The name has other characters or is too long.
    #[error("VM name {0:?} may have at most 64 of A-Z a-z 0-9 - _ . space @ ~ ! $ ^ ( )")]
    BadName(String),
    /// The app-compose document cannot be used.
    #[error("the application cannot be deployed")]
    Compose(#[from] AppComposeError),
    /// The docker-compose file inside it is not what it should be.
    #[error("docker_compose_file: {0}")]
    DockerCompose(String),
    /// The OS image cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A field has a value that makes no sense.
    #[error("{field}: {reason}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The node has not that much left.
    #[error("{asked} {unit} asked, {left} of {total} {unit} left for VMs on this node")]
    NotEnough {
        /// `MiB of memory`, `vCPUs`.
        unit: &'static str,
        /// Asked for.
        asked: u64,
        /// Free.
        left: u64,
        /// Limit.
        total: u64,
    },
    /// The host itself is short of memory.
    #[error("{asked} MiB of memory asked, the host has {available} MiB available")]
    HostMemory {
        /// Asked for.
        asked: u64,
        /// `MemAvailable`.
        available: u64,
    },
    /// No CID is free.
    #[error("all {0} context ids of this node are taken")]
    NoCid(u32),
    /// A host port is taken.
    #[error("host port {protocol} {address}:{port} is in use by {holder}")]
    PortInUse {
        /// tcp or udp.
        protocol: String,
        /// Address.
        address: String,
        /// Port.
        port: u16,
        /// Who has it.
        holder: String,
    },
    /// Host ports are off or outside of what the node allows.
    #[error("host port {0} is not allowed on this node")]
    PortNotAllowed(String),
    /// No VM of this id.
    #[error("no VM {0}")]
    UnknownVm(String),
    /// It is being removed.
    #[error("VM {0} is being removed")]
    Removing(String),
    /// The call needs a VM that runs.
    #[error("VM {0} is not running")]
    NotRunning(String),
    /// Neither hardware TEE nor permission to go without.
    #[error("this host has no TDX, and the VM asks for a hardware TEE")]
    NoTee,
    /// The software TEE is not configured.
    #[error("the VM asks for the software TEE, and this node has none")]
    NoSimulator,
    /// Production images do not run under the software TEE.
    #[error("image {0} is a production image; the software TEE needs a development image")]
    SimulatorNeedsDevImage(String),
    /// The software TEE said no.
    #[error("launching in the software TEE: {0}")]
    Simulator(RpcError),
    /// A capability that this build does not have.
    #[error("{0} is not implemented")]
    NotImplemented(&'static str),
    /// A verity volume is missing or broken.
    #[error("volume {name}: {reason}")]
    Volume {
        /// Its file name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A file or directory of ours.
    #[error("{what} {}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it did not work.
        #[source]
        source: io::Error,
    },
    /// The database.
    #[error("database")]
    Database(#[from] rusqlite::Error),
    /// The supervisor.
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
    /// QEMU cannot be used.
    #[error("QEMU {}: {reason}", path.display())]
    Qemu {
        /// The program.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The vsock daemon did not come up.
    #[error("vsock device: {0}")]
    Vsock(String),
    /// The guest did not answer.
    #[error("the guest of VM {id}: {reason}")]
    Guest {
        /// The VM.
        id: String,
        /// What happened.
        reason: String,
    },
    /// A defect of ours.
    #[error("{0}")]
    Internal(String),
}

impl VmmError {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }

    /// A value that makes no sense.
    pub(crate) fn field(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Field { field, reason: reason.into() }
    }
}

impl UserFacing for VmmError {
    fn code(&self) -> &'static str {
        match self {
            Self::BadName(_) => "vmm/bad-name",
            Self::Compose(_) => "vmm/bad-app-compose",
            Self::DockerCompose(_) => "vmm/bad-docker-compose",
            Self::Image(error) => error.code(),
            Self::Field { .. } => "vmm/bad-field",
            Self::NotEnough { unit: "vCPUs", .. } => "vmm/not-enough-vcpus",
            Self::NotEnough { .. } | Self::HostMemory { .. } => "vmm/not-enough-memory",
            Self::NoCid(_) => "vmm/no-cid",
            Self::PortInUse { .. } => "vmm/port-in-use",
            Self::PortNotAllowed(_) => "vmm/port-not-allowed",
            Self::UnknownVm(_) => "vmm/unknown-vm",
            Self::Removing(_) => "vmm/removing",
            Self::NotRunning(_) => "vmm/not-running",
            Self::NoTee => "vmm/no-tee",
            Self::NoSimulator => "vmm/no-simulator",
            Self::SimulatorNeedsDevImage(_) => "vmm/simulator-needs-dev-image",
            Self::Simulator(_) => "vmm/simulator",
            Self::NotImplemented(_) => "rpc/not-implemented",
            Self::Volume { .. } => "vmm/volume",
            Self::Io { .. } => "vmm/io",
            Self::Database(_) => "vmm/database",
            Self::Supervisor(error) => error.code(),
            Self::Qemu { .. } => "vmm/qemu",
            Self::Vsock(_) => "vmm/vsock",
            Self::Guest { .. } => "vmm/guest-unreachable",
            Self::Internal(_) => "rpc/internal",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::BadName(_) => "choose another name".to_owned(),
            Self::Compose(_) => "correct app-compose.json; `dstack deploy` makes one from a docker-compose file".to_owned(),
            Self::DockerCompose(_) => "correct the docker-compose file; `docker compose config` checks it".to_owned(),
            Self::Image(error) => error.fix(),
            Self::Field { field, .. } => format!("correct {field}"),
            Self::NotEnough { .. } => "ask for less, stop another VM, or raise the limit in the node's [cvm] settings".to_owned(),
            Self::HostMemory { .. } => "ask for less, or free memory on the host".to_owned(),
            Self::NoCid(_) => "remove a VM, or raise cvm.cid_pool_size".to_owned(),
            Self::PortInUse { .. } => "choose another host port, or stop what uses it".to_owned(),
            Self::PortNotAllowed(_) => "choose a port inside cvm.port_mapping.range, or have the operator extend it".to_owned(),
            Self::UnknownVm(_) => "list the VMs with `dstack ps`".to_owned(),
            Self::Removing(_) => "wait until it is gone".to_owned(),
            Self::NotRunning(_) => "start it first".to_owned(),
            Self::NoTee => "set simulated_tee to dstack-tdx for development, or use a host with TDX".to_owned(),
            Self::NoSimulator => "configure [tee_simulator], or use a hardware TEE".to_owned(),
            Self::SimulatorNeedsDevImage(_) => "use the image dstack-dev-<version>".to_owned(),
            Self::Simulator(error) if !error.fix.is_empty() => error.fix.clone(),
            Self::Simulator(_) => "check that dstack-tee-simulator runs and read its log".to_owned(),
            Self::NotImplemented(_) => "see the list of what is implemented in services/vmm/README.md".to_owned(),
            Self::Volume { .. } => "make the volume with `dstack image pack` and put it into the node's volumes_dir".to_owned(),
            Self::Io { path, .. } => format!("check the free space and the permissions of {}", path.display()),
            Self::Database(_) => "check the disk that holds the VMM's database".to_owned(),
            Self::Supervisor(error) => error.fix(),
            Self::Qemu { .. } => "install QEMU 10 or newer and set cvm.qemu_path".to_owned(),
            Self::Vsock(_) => "install vhost-device-vsock and set cvm.vhost_device_vsock, or load the vhost_vsock module".to_owned(),
            Self::Guest { .. } => "look at the VM's boot progress and its serial log".to_owned(),
            Self::Internal(_) => "read the service's log; this is a defect worth reporting".to_owned(),
        }
    }
}

impl From<VmmError> for RpcError {
    fn from(error: VmmError) -> Self {
        Self::from_user_facing(&error)
    }
}
