//! What a caller may be told.

use std::path::PathBuf;

use dstack_api::{RpcError, UserFacing};
use dstack_rpc::ListenError;

use crate::vendor::VendorError;

/// A request that the software TEE refuses, or a start that fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimulatorError {
    /// A VM id that cannot be a file name.
    #[error("vm id must be 1 to 64 letters, digits, dashes and underscores")]
    VmId,
    /// No such TD.
    #[error("no TD {vm_id}")]
    NoSuchTd {
        /// Its id.
        vm_id: String,
    },
    /// The guest's address belongs to no TD.
    #[error("no TD has CID {cid}")]
    NoSuchCid {
        /// The caller's CID.
        cid: u32,
    },
    /// The TD to start cannot be measured.
    #[error("measuring {what}: {reason}")]
    Measure {
        /// Which input.
        what: String,
        /// Why not.
        reason: String,
    },
    /// A field of the wrong length or value.
    #[error("{field} must be {expected}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// Files of the state directory.
    #[error("{operation} {}", path.display())]
    State {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// A state file that is not one.
    #[error("state file {} is malformed: {reason}", path.display())]
    StateMalformed {
        /// The file.
        path: PathBuf,
        /// What the parser met.
        reason: String,
    },
    /// The vendor's keys and certificates.
    #[error(transparent)]
    Vendor(#[from] VendorError),
    /// A listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The configuration does not serve kernel vsock.
    #[error("the TD has no listen path and kernel_vsock is off")]
    NoListener,
}

impl UserFacing for SimulatorError {
    fn code(&self) -> &'static str {
        match self {
            Self::VmId => "tee-simulator/bad-vm-id",
            Self::NoSuchTd { .. } | Self::NoSuchCid { .. } => "tee-simulator/no-such-td",
            Self::Measure { .. } => "tee-simulator/not-measurable",
            Self::Field { .. } => "tee-simulator/bad-request",
            Self::State { .. } | Self::StateMalformed { .. } => "tee-simulator/state",
            Self::Vendor(_) => "tee-simulator/vendor",
            Self::Listen(error) => error.code(),
            Self::NoListener => "tee-simulator/no-listener",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::VmId | Self::Field { .. } => "correct the request".to_owned(),
            Self::NoSuchTd { .. } | Self::NoSuchCid { .. } => "launch the TD first, with PUT /td/<vm id>".to_owned(),
            Self::Measure { .. } => "use an OS image whose files are complete, and a VM shape that can be measured".to_owned(),
            Self::State { .. } => "check that the state directory is writable and has space".to_owned(),
            Self::StateMalformed { path, .. } => format!("remove {} and start the VM again", path.display()),
            Self::Vendor(_) => {
                "remove the vendor directory to make a new vendor; every configured root.pem must then be renewed".to_owned()
            }
            Self::Listen(error) => error.fix(),
            Self::NoListener => "give a socket path in `listen`, or switch kernel_vsock on".to_owned(),
        }
    }
}

impl SimulatorError {
    pub(crate) fn to_rpc(&self) -> RpcError {
        RpcError::from_user_facing(self)
    }
}
