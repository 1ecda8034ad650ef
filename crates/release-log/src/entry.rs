//! One leaf. Source: SPEC.md §1.

use serde::{Deserialize, Serialize};

use crate::bundle::MAX_ENTRY_BYTES;

const VERSION: u32 = 1;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// The log was opened by a KMS that started.
    Start,
    /// Keys or a certificate went out.
    Release,
    /// Nothing went out.
    Refusal,
}

/// An entry. Holds no secret and no address of a caller; text fields are empty where nothing is known.
///
/// Fields stand in the order of their names: the canonical form is their JSON without spaces, so the declaration is the format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Advisories that apply to the platform.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advisory_ids: Vec<String>,
    /// Application, hex.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub app_id: String,
    /// Of a refusal.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// Document of the application, hex.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub compose_hash: String,
    /// Digest of the hardware's identity, hex.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub device_id: String,
    /// What happened.
    pub event: EventKind,
    /// Upper bound of the evidence's age, where it carried a nonce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence_age_seconds: Option<u64>,
    /// Instance, hex.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instance_id: String,
    /// The call.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub method: String,
    /// Digest over all registers, hex.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mr_aggregated: String,
    /// OS image, hex.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub os_image_hash: String,
    /// Kind of TEE.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub platform: String,
    /// Backend that decided.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// As in the operator's log.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_id: String,
    /// The evidence was of a software TEE.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
    /// Refusals since the entry before that have no entry: strangers' beyond the limit.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub suppressed: u64,
    /// Vendor's word for the platform's patch level.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tcb_status: String,
    /// Unix seconds.
    pub time: u64,
    /// 1.
    pub version: u32,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Bytes that are no entry.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// Not the JSON of an entry.
    #[error("entry is not understood")]
    Json(#[from] serde_json::Error),
    /// Of a newer release.
    #[error("entry has version {got}, known is {VERSION}")]
    Version {
        /// What it says.
        got: u32,
    },
    /// Longer than a bundle can hold.
    #[error("entry has {got} bytes, at most {MAX_ENTRY_BYTES} fit")]
    TooLong {
        /// Its length.
        got: usize,
    },
}

impl Entry {
    /// An entry about nothing in particular.
    #[must_use]
    pub fn new(event: EventKind, time: u64) -> Self {
        Self {
            advisory_ids: Vec::new(),
            app_id: String::new(),
            code: String::new(),
            compose_hash: String::new(),
            device_id: String::new(),
            event,
            evidence_age_seconds: None,
            instance_id: String::new(),
            method: String::new(),
            mr_aggregated: String::new(),
            os_image_hash: String::new(),
            platform: String::new(),
            policy: String::new(),
            request_id: String::new(),
            simulated: false,
            suppressed: 0,
            tcb_status: String::new(),
            time,
            version: VERSION,
        }
    }

    /// The canonical form: the leaf's bytes.
    ///
    /// Errors: it does not fit into a bundle.
    pub fn encode(&self) -> Result<Vec<u8>, EntryError> {
        let bytes = serde_json::to_vec(self)?;
        if bytes.len() > MAX_ENTRY_BYTES { Err(EntryError::TooLong { got: bytes.len() }) } else { Ok(bytes) }
    }

    /// Reads a leaf. Fields of newer releases are passed over.
    ///
    /// Errors: another document or version.
    pub fn parse(bytes: &[u8]) -> Result<Self, EntryError> {
        let entry: Self = serde_json::from_slice(bytes)?;
        if entry.version == VERSION { Ok(entry) } else { Err(EntryError::Version { got: entry.version }) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    #[test]
    fn the_canonical_form_has_its_names_in_order_and_nothing_empty() {
        let full = Entry {
            advisory_ids: vec!["INTEL-SA-1".into()],
            app_id: "a".into(),
            code: "c".into(),
            compose_hash: "d".into(),
            device_id: "e".into(),
            evidence_age_seconds: Some(3),
            instance_id: "i".into(),
            method: "m".into(),
            mr_aggregated: "r".into(),
            os_image_hash: "o".into(),
            platform: "p".into(),
            policy: "y".into(),
            request_id: "q".into(),
            simulated: true,
            suppressed: 2,
            tcb_status: "t".into(),
            ..Entry::new(EventKind::Refusal, 7)
        };
        let text = String::from_utf8(full.encode().unwrap()).unwrap();
        let sorted: std::collections::BTreeMap<String, serde_json::Value> = serde_json::from_str(&text).unwrap();

        assert_eq!(serde_json::to_string(&sorted).unwrap(), text);
        assert_eq!(sorted.len(), 19);
        assert_eq!(Entry::parse(text.as_bytes()).unwrap(), full);
        assert_eq!(
            String::from_utf8(Entry::new(EventKind::Start, 7).encode().unwrap()).unwrap(),
            r#"{"event":"start","time":7,"version":1}"#
        );
    }

    #[test]
    fn other_documents_are_no_entries() {
        for bytes in
            [b"".as_slice(), b"{}", b"\0\0", br#"{"event":"start","time":7,"version":2}"#, br#"{"event":"gift","time":7,"version":1}"#]
        {
            assert!(Entry::parse(bytes).is_err());
        }
        let long = Entry { code: "x".repeat(MAX_ENTRY_BYTES), ..Entry::new(EventKind::Refusal, 7) };
        assert!(matches!(long.encode(), Err(EntryError::TooLong { .. })));
    }
}
