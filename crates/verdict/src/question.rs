//! Everything a judgement needs besides the evidence.

use std::collections::BTreeMap;

use dstack_attestation::{Endorsements, Policy, ReportData, TrustAnchors};
use dstack_manifest::{AppId, ComposeHash, OsImageHash};

/// Whom to trust, what to expect, and when. All of it comes from the relying party.
#[derive(Debug, Clone)]
pub struct Question {
    /// Where policy and roots come from, for people.
    pub policy_name: String,
    /// Roots.
    pub anchors: TrustAnchors,
    /// Where a root that is not built in comes from, for people.
    pub root_origin: String,
    /// What the evidence must satisfy.
    pub policy: Policy,
    /// What the app must be.
    pub expectations: Expectations,
    /// The vendors' papers, unverified.
    pub endorsements: Endorsements,
    /// What the evidence must answer.
    pub challenge: Option<Challenge>,
    /// Unix seconds at which everything must be valid.
    pub now: u64,
}

impl Question {
    /// The question of somebody who expects nothing: vendors' roots, no policy.
    #[must_use]
    pub fn open(now: u64) -> Self {
        Self {
            policy_name: "none: the cryptographic verdict".to_owned(),
            anchors: TrustAnchors::hardware(),
            root_origin: String::new(),
            policy: Policy::report_only(),
            expectations: Expectations::default(),
            endorsements: Endorsements::default(),
            challenge: None,
            now,
        }
    }
}

/// What a relying party knows about the app.
#[derive(Debug, Clone, Default)]
pub struct Expectations {
    /// OS images that are known to be good, with name and origin.
    pub os_images: BTreeMap<OsImageHash, String>,
    /// Root key (SPKI DER) of the KMS that is expected, with its origin.
    pub kms: Option<(Vec<u8>, String)>,
    /// The app.
    pub app_id: Option<AppId>,
    /// Its documents.
    pub compose_hashes: Vec<ComposeHash>,
}

/// Bytes that evidence must contain to be fresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// 1 to 64 bytes.
    pub bytes: Vec<u8>,
    /// How they must stand in it.
    pub field: ChallengeField,
    /// They were made at random for this very question.
    pub is_fresh: bool,
}

/// The field of the evidence that answers a challenge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChallengeField {
    /// The platform's field for nonces: report data, or the nonce where the platform has one of its own.
    Nonce,
    /// Report data; the user data of a Nitro document.
    ReportData,
}

impl Challenge {
    /// The report data that answers it: padded with zeros on the right.
    #[must_use]
    pub fn report_data(&self) -> ReportData {
        let mut data = [0; 64];
        for (to, from) in data.iter_mut().zip(&self.bytes) {
            *to = *from;
        }
        data
    }
}
