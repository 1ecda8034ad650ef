//! The attestation result.

use std::{borrow::Cow, fmt};

use dstack_manifest::{AppId, ComposeHash, OsImageHash};
use serde::{Serialize, Serializer, ser::SerializeMap as _};

/// The verdict in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Word {
    /// Every check holds.
    #[serde(rename = "VERIFIED")]
    Verified,
    /// Nothing is wrong, and something is not known or not as it should be.
    #[serde(rename = "VERIFIED WITH CAVEATS")]
    VerifiedWithCaveats,
    /// Every check holds under a root that is not the vendor's: nothing about hardware is proven.
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

/// How a check ended. Scripts see `pass`, `fail`, `skipped` and `unknown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Mark {
    /// It holds.
    #[serde(rename = "pass")]
    Passed,
    /// It holds, with something that a reader should know; there is a caveat about it.
    #[serde(rename = "pass")]
    Remark,
    /// It could not be made, although it matters; there is a caveat about it.
    #[serde(rename = "unknown")]
    Unknown,
    /// It was not made: nobody asked for it, or an earlier check failed.
    #[serde(rename = "skipped")]
    Skipped,
    /// It does not hold.
    #[serde(rename = "fail")]
    Failed,
}

/// A check with its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckLine {
    /// Stable name.
    pub name: Cow<'static, str>,
    /// Result.
    pub outcome: Mark,
    /// What was found.
    pub detail: String,
    /// What was asked, as a statement that needs no knowledge of the field.
    pub says: Cow<'static, str>,
}

/// Somebody or something the verdict rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Anchor {
    /// For what.
    pub role: Cow<'static, str>,
    /// Who or what.
    pub anchor: String,
    /// Where the trust in it comes from.
    pub origin: String,
}

impl Anchor {
    /// An anchor.
    #[must_use]
    pub fn new(role: &'static str, anchor: impl Into<String>, origin: impl Into<String>) -> Self {
        Self { role: Cow::Borrowed(role), anchor: anchor.into(), origin: origin.into() }
    }
}

/// What the evidence says, in its own order: registers in hex, then facts. JSON: an object with text values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims(Vec<Claim>);

/// One thing the evidence says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Lower-case name, such as `rtmr0`.
    pub name: Cow<'static, str>,
    /// Hex for bytes.
    pub value: String,
}

impl Claims {
    /// Adds bytes as hex.
    pub fn push_bytes(&mut self, name: impl Into<Cow<'static, str>>, value: &[u8]) {
        self.push(name, hex::encode(value));
    }

    /// Adds text; the first of a name stays.
    pub fn push(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) {
        let name = name.into();
        if self.get(&name).is_none() {
            self.0.push(Claim { name, value: value.into() });
        }
    }

    /// The value of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|claim| claim.name == name).map(|claim| claim.value.as_str())
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Claim> + Clone {
        self.0.iter()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Claims {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for claim in &self.0 {
            map.serialize_entry(&claim.name, &claim.value)?;
        }
        map.end()
    }
}

/// What a dstack VM is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Identity {
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
}

/// The whole result. JSON: the fields in this order; scripts may rely on the first eight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// In a word.
    #[serde(rename = "verdict")]
    pub word: Word,
    /// Which hardware signed: `tdx`, `sgx`, `sev-snp`, `nitro-enclave`, …; `unknown` where that cannot be told.
    pub platform: Cow<'static, str>,
    /// State of the platform's firmware by the vendor's papers, such as `UpToDate`.
    pub tcb_status: Option<String>,
    /// Advisories that apply.
    pub advisory_ids: Vec<String>,
    /// What the evidence says. Not to be believed where the verdict is [`Word::NotVerified`].
    pub claims: Claims,
    /// Every check, in the order in which they are made.
    pub checks: Vec<CheckLine>,
    /// What the verdict rests on.
    pub trust_anchors: Vec<Anchor>,
    /// Why, in a sentence.
    pub reason: String,
    /// What to do about it; empty unless [`Word::NotVerified`].
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fix: String,
    /// What is not known, in sentences.
    pub caveats: Vec<String>,
    /// What the VM is, where it is one of dstack.
    pub identity: Identity,
    /// What was verified.
    pub source: String,
    /// Which policy.
    pub policy: String,
    /// Unix seconds of the verification.
    pub verified_at: u64,
    /// Unix seconds until which the vendor's papers allow this verdict.
    pub valid_until: Option<u64>,
}

impl Verdict {
    /// A verdict with nothing in it, [`Word::NotVerified`].
    #[must_use]
    pub fn blank(source: &str, policy: &str, now: u64) -> Self {
        Self {
            word: Word::NotVerified,
            platform: Cow::Borrowed("unknown"),
            tcb_status: None,
            advisory_ids: Vec::new(),
            claims: Claims::default(),
            checks: Vec::new(),
            trust_anchors: Vec::new(),
            reason: String::new(),
            fix: String::new(),
            caveats: Vec::new(),
            identity: Identity::default(),
            source: source.to_owned(),
            policy: policy.to_owned(),
            verified_at: now,
            valid_until: None,
        }
    }

    /// Input that is no evidence at all, or is broken before its kind matters.
    #[must_use]
    pub fn unreadable(mut self, reason: impl Into<String>, fix: &str) -> Self {
        self.word = Word::NotVerified;
        self.reason = reason.into();
        fix.clone_into(&mut self.fix);
        self.check("format", Mark::Failed, "the input is evidence of a known kind", self.reason.clone());
        self
    }

    /// Adds a check.
    pub fn check(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        outcome: Mark,
        says: impl Into<Cow<'static, str>>,
        detail: impl Into<String>,
    ) {
        self.checks.push(CheckLine { name: name.into(), outcome, detail: detail.into(), says: says.into() });
    }

    /// Whether a check of that name holds.
    #[must_use]
    pub fn passed(&self, name: &str) -> bool {
        self.checks.iter().any(|line| line.name == name && matches!(line.outcome, Mark::Passed | Mark::Remark))
    }

    /// The first check that failed.
    #[must_use]
    pub fn failed(&self) -> Option<&CheckLine> {
        self.checks.iter().find(|line| line.outcome == Mark::Failed)
    }

    /// Sets word and reason from checks and caveats. `simulated`: the root is not the vendor's.
    pub fn conclude(&mut self, simulated: bool) {
        if let Some(line) = self.failed() {
            if self.reason.is_empty() {
                self.reason = format!("{}: {}", line.name, line.detail);
            }
            if self.fix.is_empty() {
                "do not trust this evidence; ask whoever runs it, or correct what you expect".clone_into(&mut self.fix);
            }
            self.word = Word::NotVerified;
            return;
        }
        (self.word, self.reason) = match (simulated, self.caveats.first()) {
            (true, _) => (Word::Simulated, "every check holds, under a root that is not a hardware vendor's".to_owned()),
            (false, Some(caveat)) => (Word::VerifiedWithCaveats, caveat.clone()),
            (false, None) => (Word::Verified, "every check holds".to_owned()),
        };
        self.fix.clear();
    }
}
