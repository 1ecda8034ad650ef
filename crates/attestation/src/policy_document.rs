//! A policy as a TOML document. `policy.example.toml` beside this crate shows every key.
//!
//! The document is checked as a whole: every problem is reported, with its line and key, before any policy exists.

use std::{fmt, ops::Range};

use dstack_manifest::OsImageHash;
use serde::Deserialize as _;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{DebugRule, ImageRule, ModuleRule, Platform, Policy, TcbStatus};

/// Largest document that is read.
const MAX_POLICY_BYTES: usize = 1 << 20;
/// The form of the document.
const VERSION: i64 = 1;
/// Most problems that are told; a document that breaks off in the depth has one for each level.
const MAX_PROBLEMS_SHOWN: usize = 10;

/// One thing wrong with a policy document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyProblem {
    /// Line, from 1.
    pub line: usize,
    /// Key with its tables, `tcb.accepted`; empty where the document is no TOML.
    pub key: String,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for PolicyProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.key.is_empty() { "" } else { ": " };
        write!(f, "line {}: {}{separator}{}", self.line, self.key, self.message)
    }
}

/// Everything wrong with a policy document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError {
    /// At least one, in the order of the lines.
    pub problems: Vec<PolicyProblem>,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("policy: ")?;
        for (index, problem) in self.problems.iter().take(MAX_PROBLEMS_SHOWN).enumerate() {
            write!(f, "{}{problem}", if index == 0 { "" } else { "; " })?;
        }
        match self.problems.len().saturating_sub(MAX_PROBLEMS_SHOWN) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl std::error::Error for PolicyError {}

impl Policy {
    /// Reads a policy document. What it does not mention is as in [`Policy::default`].
    ///
    /// Errors: every problem of the document at once.
    pub fn from_toml(text: &str) -> Result<Self, PolicyError> {
        let whole = |message: String| PolicyError { problems: vec![PolicyProblem { line: 1, key: String::new(), message }] };
        if text.len() > MAX_POLICY_BYTES {
            return Err(whole(format!("{} bytes, at most {MAX_POLICY_BYTES} are read", text.len())));
        }
        let (document, errors) = DeTable::parse_recoverable(text);
        let mut reader = Reader { text, problems: Vec::new() };
        for error in errors {
            reader.problem(error.span().unwrap_or(0..0), "", error.message());
        }
        let mut policy = Self::default();
        if reader.problems.is_empty() {
            let root = Table { prefix: String::new(), span: 0..0, entries: document.into_inner() };
            reader.root(&root, &mut policy);
        }
        reader.problems.sort_by_key(|problem| problem.line);
        if reader.problems.is_empty() { Ok(policy) } else { Err(PolicyError { problems: reader.problems }) }
    }
}

struct Table<'i> {
    prefix: String,
    span: Range<usize>,
    entries: DeTable<'i>,
}

impl<'i> Table<'i> {
    fn get(&self, key: &str) -> Option<(String, &Spanned<DeValue<'i>>)> {
        let (_, value) = self.entries.iter().find(|(name, _)| name.get_ref() == key)?;
        Some((format!("{}{key}", self.prefix), value))
    }
}

struct Reader<'t> {
    text: &'t str,
    problems: Vec<PolicyProblem>,
}

impl Reader<'_> {
    fn problem(&mut self, at: Range<usize>, key: &str, message: impl Into<String>) {
        let before = self.text.as_bytes().get(..at.start).unwrap_or_default();
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        self.problems.push(PolicyProblem { line, key: key.to_owned(), message: message.into() });
    }

    fn root(&mut self, root: &Table<'_>, policy: &mut Policy) {
        self.known(root, &["version", "platforms", "machines", "debug", "tcb", "advisories", "age", "image", "tdx"]);
        if root.get("version").is_none() {
            self.problem(root.span.clone(), "version", format!("missing; this program reads version {VERSION}"));
        }
        self.number(root, "version", |number| (number == VERSION).then_some(()), "this program reads version 1");
        if let Some(platforms) = self.list(root, "platforms", platform, "a platform: tdx, sgx, sev-snp, nitro-enclave, …") {
            policy.platforms = Some(platforms);
        }
        policy.machines = self.list(root, "machines", machine, "a hardware id or its SHA-256 in hex");
        let rule = |word: &str| match word {
            "refuse" => Some(DebugRule::Refused),
            "report" => Some(DebugRule::Reported),
            _ => None,
        };
        policy.debug = self.word(root, "debug", rule, "\"refuse\" or \"report\"").unwrap_or_default();
        self.tcb(root, policy);
        if let Some(table) = self.table(root, "advisories") {
            self.known(&table, &["rejected", "accepted"]);
            let advisory = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            policy.rejected_advisories = self.list(&table, "rejected", advisory, "an advisory id").unwrap_or_default();
            policy.accepted_advisories = self.list(&table, "accepted", advisory, "an advisory id");
        }
        if let Some(table) = self.table(root, "age") {
            self.known(&table, &["max_collateral", "max_evidence"]);
            policy.max_collateral_age = self.word(&table, "max_collateral", seconds, DURATION);
            policy.max_evidence_age = self.word(&table, "max_evidence", seconds, DURATION);
        }
        self.image(root, policy);
        self.tdx(root, policy);
    }

    fn tcb(&mut self, root: &Table<'_>, policy: &mut Policy) {
        let Some(table) = self.table(root, "tcb") else { return };
        self.known(&table, &["accepted", "minimum_evaluation_number", "platform"]);
        policy.accepted_tcb = self.list(&table, "accepted", tcb_status, TCB_STATUS);
        let minimum = self.number(&table, "minimum_evaluation_number", |number| u32::try_from(number).ok(), "0 or more");
        policy.minimum_tcb_evaluation_number = minimum;
        let Some(matrix) = self.table(&table, "platform") else { return };
        self.known(&matrix, &Platform::ALL.map(Platform::name));
        for platform in Platform::ALL {
            if let Some(statuses) = self.list(&matrix, platform.name(), tcb_status, TCB_STATUS) {
                policy.accepted_tcb_of.insert(platform, statuses);
            }
        }
    }

    fn image(&mut self, root: &Table<'_>, policy: &mut Policy) {
        let Some(table) = self.table(root, "image") else { return };
        self.known(&table, &["required", "allowed", "accept_unchecked_acpi"]);
        let required = self.flag(&table, "required").unwrap_or(true);
        policy.image = if required { ImageRule::Required } else { ImageRule::WherePossible };
        policy.allowed_images = self.list(&table, "allowed", |text| text.parse::<OsImageHash>().ok(), "an image hash, 64 hex digits");
        policy.accept_unchecked_acpi = self.flag(&table, "accept_unchecked_acpi").unwrap_or(false);
        if let (false, Some((key, value))) = (required, table.get("allowed")) {
            self.problem(value.span(), &key, "a list of images needs required = true, else evidence without an image passes");
        }
    }

    fn tdx(&mut self, root: &Table<'_>, policy: &mut Policy) {
        let Some(table) = self.table(root, "tdx") else { return };
        self.known(&table, &["sept_ve_disable", "mr_signer_seam", "service_tds"]);
        let required = |word: &str| (word == "required").then_some(());
        self.word(&table, "sept_ve_disable", required, "\"required\": a TD without it is never believed");
        let signer = |word: &str| match word {
            "intel" => Some(ModuleRule::Intel),
            "endorsed" => Some(ModuleRule::Endorsed),
            _ => None,
        };
        policy.mr_signer_seam = self.word(&table, "mr_signer_seam", signer, "\"intel\" or \"endorsed\"").unwrap_or_default();
        let service_td = |text: &str| hex::decode(text).ok()?.try_into().ok().filter(|value| *value != [0; 48]);
        policy.service_tds = self.list(&table, "service_tds", service_td, "MRSERVICETD, 96 hex digits, not zero").unwrap_or_default();
    }

    /// Reports keys that are not among `names`.
    fn known(&mut self, table: &Table<'_>, names: &[&str]) {
        for (key, _) in table.entries.iter().filter(|(key, _)| !names.contains(&key.get_ref().as_ref())) {
            let path = format!("{}{}", table.prefix, key.get_ref());
            self.problem(key.span(), &path, format!("unknown key; known here: {}", names.join(", ")));
        }
    }

    fn table<'i>(&mut self, parent: &Table<'i>, key: &str) -> Option<Table<'i>> {
        let (path, value) = parent.get(key)?;
        match value.get_ref() {
            DeValue::Table(entries) => Some(Table { prefix: format!("{path}."), span: value.span(), entries: entries.clone() }),
            other => {
                self.problem(value.span(), &path, format!("is of type {}, expected a table", other.type_str()));
                None
            }
        }
    }

    fn flag(&mut self, table: &Table<'_>, key: &str) -> Option<bool> {
        let (path, value) = table.get(key)?;
        let flag = value.get_ref().as_bool();
        if flag.is_none() {
            self.problem(value.span(), &path, "expected true or false");
        }
        flag
    }

    fn number<T>(&mut self, table: &Table<'_>, key: &str, parse: impl Fn(i64) -> Option<T>, expected: &str) -> Option<T> {
        let (path, value) = table.get(key)?;
        let number = value.get_ref().as_integer().and_then(|number| i64::from_str_radix(number.as_str(), number.radix()).ok());
        let parsed = number.and_then(parse);
        if parsed.is_none() {
            self.problem(value.span(), &path, format!("expected a number: {expected}"));
        }
        parsed
    }

    fn word<T>(&mut self, table: &Table<'_>, key: &str, parse: impl Fn(&str) -> Option<T>, expected: &str) -> Option<T> {
        let (path, value) = table.get(key)?;
        let parsed = value.get_ref().as_str().and_then(parse);
        if parsed.is_none() {
            self.problem(value.span(), &path, format!("expected {expected}"));
        }
        parsed
    }

    /// A list of texts. Every wrong entry is reported. An empty list stays an empty list: nothing is accepted.
    fn list<T>(&mut self, table: &Table<'_>, key: &str, parse: impl Fn(&str) -> Option<T>, expected: &str) -> Option<Vec<T>> {
        let (path, value) = table.get(key)?;
        let Some(entries) = value.get_ref().as_array() else {
            self.problem(value.span(), &path, format!("expected a list, each entry {expected}"));
            return None;
        };
        let mut parsed = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            match entry.get_ref().as_str().and_then(&parse) {
                Some(item) => parsed.push(item),
                None => self.problem(entry.span(), &format!("{path}[{index}]"), format!("expected {expected}")),
            }
        }
        Some(parsed)
    }
}

const TCB_STATUS: &str = "a TCB status: UpToDate, SWHardeningNeeded, ConfigurationNeeded, ConfigurationAndSWHardeningNeeded, OutOfDate, \
     OutOfDateConfigurationNeeded, TDRelaunchAdvised, TDRelaunchAdvisedConfigurationNeeded";

const DURATION: &str = "a duration: a whole number with s, m, h or d, such as \"30d\"";

/// Every status but `Revoked`, which no policy can accept.
fn tcb_status(text: &str) -> Option<TcbStatus> {
    let status = TcbStatus::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(text)).ok()?;
    (status != TcbStatus::Revoked).then_some(status)
}

fn platform(text: &str) -> Option<Platform> {
    Platform::ALL.into_iter().find(|platform| platform.name() == text)
}

fn machine(text: &str) -> Option<Vec<u8>> {
    hex::decode(text).ok().filter(|id| !id.is_empty())
}

fn seconds(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse::<u64>().ok()?.checked_mul(factor))?
}
