//! How a failed boot is told: phase, cause, code and fix in one line.

use dstack_api::{RpcError, UserFacing};

/// `<phase>: <cause> [<code>]; fix: <fix>`.
#[must_use]
pub fn describe(phase: &str, error: &dyn UserFacing) -> String {
    let RpcError { message, code, fix, .. } = RpcError::from_user_facing(error);
    format!("{phase}: {message} [{code}]; fix: {fix}")
}
