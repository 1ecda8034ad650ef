//! Every wire contract: proto files, their types with the JSON mapping, service traits and clients.
//!
//! One call is `POST <base>/<Method>` with a protobuf or JSON body; see [`prpc`]. Field names, numbers and JSON forms
//! are those of the existing clients. This crate does no I/O: [`Dispatch`] is served and [`Transport`] is implemented
//! by `dstack-rpc`.

pub mod json;
pub mod policy_webhook;
mod prpc;
pub mod supervisor;
pub mod tee_simulator;
mod user_facing;
pub mod verifier;
pub mod wire;

pub use prpc::{Dispatch, Encoding, Payload, RpcError, Transport};
pub use user_facing::UserFacing;

/// Key management service.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, reason = "generated from proto/kms.proto")]
pub mod kms {
    include!(concat!(env!("OUT_DIR"), "/kms.rs"));
}
/// Virtual machine manager.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, reason = "generated from proto/vmm.proto")]
pub mod vmm {
    include!(concat!(env!("OUT_DIR"), "/vmm.rs"));
}
/// What the VMM serves to guests.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, reason = "generated from proto/host_api.proto")]
pub mod host_api {
    include!(concat!(env!("OUT_DIR"), "/host_api.rs"));
}
/// What the guest agent serves to its host.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, reason = "generated from proto/guest_api.proto")]
pub mod guest_api {
    include!(concat!(env!("OUT_DIR"), "/guest_api.rs"));
}
/// What the guest agent serves to containers and to the public.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, reason = "generated from proto/guest_agent.proto")]
pub mod guest_agent {
    include!(concat!(env!("OUT_DIR"), "/dstack_guest.rs"));
}
