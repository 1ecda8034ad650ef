//! The attestation result.

use std::fmt;

use dstack_manifest::{AppId, ComposeHash, OsImageHash};
use serde::Serialize;

/// The verdict in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Word {
    /// Every check holds.
    #[serde(rename = "VERIFIED")]
    Verified,
    /// Nothing is wrong, and something is not known.
    #[serde(rename = "VERIFIED WITH CAVEATS")]
    VerifiedWithCaveats,
    /// Every check holds under the root of a software TEE: nothing about hardware is proven.
    #[serde(rename = "SIMULATED")]
    Simulated,
    /// Something is wrong.
    #[serde(rename = "NOT VERIFIED")]
    NotVerified,
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verified => "VERIFIED",
            Self::VerifiedWithCaveats => "VERIFIED WITH CAVEATS",
            Self::Simulated => "SIMULATED",
            Self::NotVerified => "NOT VERIFIED",
        })
    }
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Mark {
    /// It holds.
    Passed,
    /// It holds as far as it could be made.
    Caveat,
    /// It does not hold.
    Failed,
    /// Not reached: an earlier check failed.
    NotReached,
}

/// A check with its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct CheckLine {
    /// Stable name.
    pub check: &'static str,
    /// Result.
    pub result: Mark,
    /// What was asked, as a statement.
    pub says: &'static str,
    /// What was found.
    pub found: String,
}

/// Somebody or something the verdict rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Anchor {
    /// For what.
    pub role: &'static str,
    /// Who or what.
    pub anchor: String,
    /// Where the trust in it comes from.
    pub origin: String,
}

/// Registers of the VM, hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct RegisterValues {
    /// MRTD.
    pub mrtd: String,
    /// RTMR0 to RTMR3.
    pub rtmr: [String; 4],
    /// MRCONFIGID.
    pub mr_config_id: String,
}

/// What the VM is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Identity {
    /// App.
    pub app_id: Option<AppId>,
    /// Its name, from the app-compose.json that was shown.
    pub app_name: Option<String>,
    /// Its document.
    pub compose_hash: Option<ComposeHash>,
    /// Its instance, hex; empty for none.
    pub instance_id: String,
    /// OS image.
    pub os_image_hash: Option<OsImageHash>,
    /// Machine, hex.
    pub device_id: Option<String>,
    /// TCB status of the platform.
    pub tcb_status: Option<String>,
}

/// The whole result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Verdict {
    /// In a word.
    #[serde(rename = "verdict")]
    pub word: Word,
    /// What was verified.
    pub source: String,
    /// Which policy.
    pub policy: String,
    /// Why not, in a sentence; empty unless [`Word::NotVerified`].
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fix: String,
    /// What it rests on.
    pub trust_anchors: Vec<Anchor>,
    /// Every check.
    pub checks: Vec<CheckLine>,
    /// What is not known, in sentences.
    pub caveats: Vec<String>,
    /// What the VM is. Unverified unless the verdict says otherwise.
    pub identity: Identity,
    /// Its registers.
    pub registers: Option<RegisterValues>,
    /// Unix seconds of the verification.
    pub verified_at: u64,
    /// Unix seconds until which the vendor's collateral allows this verdict.
    pub valid_until: Option<u64>,
}
