//! The verifier's HTTP interface: `POST /verify` with evidence in JSON → [`VerifyResponse`], `GET /health`, `GET /metrics`.
//!
//! The first three fields of an answer, and the details, are those that existing clients read; the rest says why, and on what it rests.
//! Requests: [`VerifyRequest`], or any other form of evidence that the verifier recognises, such as a saved bundle.
//! A request that can be decoded is answered with HTTP 200 whatever the verdict is; one that cannot, with an
//! [`RpcError`](crate::RpcError).

use serde::{Deserialize, Serialize};

/// Evidence: either a quote with its log and configuration, or an attestation envelope.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyRequest {
    /// Raw quote, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quote: Option<String>,
    /// The event log as JSON text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_log: Option<String>,
    /// The `vm_config` document as JSON text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_config: Option<String>,
    /// Attestation envelope, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation: Option<String>,
    /// Asks for [`VerifyDetails::rtmr_debug`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub debug: Option<bool>,
}

/// The answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyResponse {
    /// Quote, event log and OS image are verified, and nothing is wrong.
    pub is_valid: bool,
    /// What was found.
    pub details: VerifyDetails,
    /// Why `is_valid` is false.
    pub reason: Option<String>,
    /// The verdict in words: `VERIFIED`, `VERIFIED WITH CAVEATS`, `SIMULATED`, `NOT VERIFIED`, `UNDECIDED`.
    #[serde(default)]
    pub verdict: String,
    /// Every check, in order.
    #[serde(default)]
    pub checks: Vec<CheckLine>,
    /// What the verdict rests on.
    #[serde(default)]
    pub trust_anchors: Vec<TrustAnchor>,
    /// What is not known, in sentences.
    #[serde(default)]
    pub caveats: Vec<String>,
    /// What to do where `is_valid` is false.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fix: String,
}

/// What was found. Fields are `null` where the verification did not get that far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyDetails {
    /// The hardware's signature holds, up to the trust anchor.
    pub quote_verified: bool,
    /// The log replays to the signed registers.
    pub event_log_verified: bool,
    /// The boot registers are those of the OS image.
    pub os_image_hash_verified: bool,
    /// The ACPI tables of the VM were computed, not taken from the log.
    #[serde(default)]
    pub acpi_tables_verified: bool,
    /// The image is a development flavour; known where the image itself was read.
    #[serde(default)]
    pub os_image_is_dev: Option<bool>,
    /// Release of the image; known where the image itself was read.
    #[serde(default)]
    pub os_image_version: Option<String>,
    /// `dstack-tdx` and others.
    #[serde(default)]
    pub tee_variant: Option<String>,
    /// 64 bytes, hex.
    pub report_data: Option<String>,
    /// TCB status of the machine.
    pub tcb_status: Option<String>,
    /// Advisories that apply to it.
    #[serde(default)]
    pub advisory_ids: Vec<String>,
    /// Who gave the VM its keys.
    #[serde(default)]
    pub key_provider: Option<KeyProvider>,
    /// What the VM is.
    #[serde(default)]
    pub app_info: Option<AppInfo>,
    /// The same as a policy sees it.
    #[serde(default)]
    pub boot_info: Option<BootInfo>,
    /// With `debug`: the tables that the VM's shape should give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acpi_tables: Option<AcpiTables>,
    /// With `debug`: registers that are not the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtmr_debug: Option<Vec<RtmrMismatch>>,
}

/// Who gave the VM its keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyProvider {
    /// `kms`, `local-sgx`, `tpm`, `none`.
    pub name: String,
    /// Hex; for a KMS its root key, SPKI DER.
    pub id: String,
}

/// What the VM is; bytes as hex.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppInfo {
    /// 20 bytes.
    pub app_id: String,
    /// 32 bytes.
    pub compose_hash: String,
    /// 20 bytes, or empty.
    pub instance_id: String,
    /// 32 bytes.
    pub device_id: String,
    /// 32 bytes.
    pub mr_system: String,
    /// 32 bytes.
    pub mr_aggregated: String,
    /// 32 bytes, or empty where none is proven.
    pub os_image_hash: String,
    /// The measured payload of the key provider event.
    pub key_provider_info: String,
}

/// What a policy decides on; the body of its webhook. Bytes as hex.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BootInfo {
    /// `dstack-tdx` and others.
    pub tee_variant: String,
    /// 32 bytes.
    pub mr_aggregated: String,
    /// 32 bytes, or empty where none is proven.
    pub os_image_hash: String,
    /// 32 bytes.
    pub mr_system: String,
    /// 20 bytes.
    pub app_id: String,
    /// 32 bytes.
    pub compose_hash: String,
    /// 20 bytes, or empty.
    pub instance_id: String,
    /// 32 bytes.
    pub device_id: String,
    /// The measured payload of the key provider event.
    pub key_provider_info: String,
    /// TCB status of the machine.
    pub tcb_status: String,
    /// Advisories that apply to it.
    pub advisory_ids: Vec<String>,
}

/// ACPI tables as the machine model gives them, hex.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiTables {
    /// The blob of tables.
    pub tables: String,
    /// The root pointer.
    pub rsdp: String,
    /// The commands that link them.
    pub loader: String,
}

/// A register whose events are not the image's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtmrMismatch {
    /// `RTMR0` to `RTMR2`.
    pub rtmr: String,
    /// Value that the image gives, hex.
    pub expected: String,
    /// Value in the quote, hex.
    pub actual: String,
    /// The events of the log that extend it.
    pub events: Vec<RtmrEvent>,
    /// Digests that the image gives and that the log lacks at its end.
    pub missing_expected_digests: Vec<String>,
}

/// One event of a register that differs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtmrEvent {
    /// Position among the register's events.
    pub index: usize,
    /// TCG event type.
    pub event_type: u32,
    /// What the image's event at this position is.
    pub event_name: String,
    /// Digest in the log, hex.
    pub actual_digest: String,
    /// Digest that the image gives, hex; `null` where it gives none any more.
    pub expected_digest: Option<String>,
    /// Bytes of the event's payload in the log.
    pub payload_len: usize,
    /// `match`, `mismatch` or `extra`.
    pub status: String,
}

/// A check with its result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckLine {
    /// Stable name.
    pub name: String,
    /// `pass`, `fail`, `skipped`, `unknown`.
    pub outcome: String,
    /// What was found.
    pub detail: String,
    /// What was asked, as a statement.
    pub says: String,
}

/// Somebody or something a verdict rests on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustAnchor {
    /// For what.
    pub role: String,
    /// Who or what.
    pub anchor: String,
    /// Where the trust in it comes from.
    pub origin: String,
}

/// Answer of `GET /health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// `dstack-verifier`.
    pub service: String,
}
