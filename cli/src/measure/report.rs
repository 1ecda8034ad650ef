//! The results of `measure` for scripts.

use dstack_manifest::OsImageHash;
use serde::Serialize;

use super::explain::Explanation;

/// What `measure --json` prints. Registers are hex; `null` where the reason stands beside.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) os_image_hash: Option<OsImageHash>,
    /// `tdx` or `snp`.
    pub(super) tee: &'static str,
    /// The VM in words.
    pub(super) vm: String,
    pub(super) vcpus: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) qemu_version: Option<String>,
    /// The tables in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tables: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mrtd: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rtmr0: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rtmr0_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rtmr1: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rtmr2: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) measurement: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) events: Vec<EventRow>,
    #[serde(rename = "diff", skip_serializing_if = "Option::is_none")]
    pub(super) explanation: Option<Explanation>,
}

/// One boot event.
#[derive(Debug, Serialize)]
pub(super) struct EventRow {
    pub(super) imr: u32,
    pub(super) event_type: u32,
    pub(super) digest: String,
    pub(super) event: String,
}

impl Report {
    /// The registers of its TEE, by name.
    pub(super) fn registers(&self) -> Vec<(&'static str, Option<&str>)> {
        if self.tee == "snp" {
            return vec![("MEASUREMENT", self.measurement.as_deref())];
        }
        vec![
            ("MRTD", self.mrtd.as_deref()),
            ("RTMR0", self.rtmr0.as_deref()),
            ("RTMR1", self.rtmr1.as_deref()),
            ("RTMR2", self.rtmr2.as_deref()),
        ]
    }
}
