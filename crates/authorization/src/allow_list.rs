//! The allow list: parsed, checked, immutable.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
};

use dstack_api::UserFacing;
use dstack_manifest::{AppId, ComposeHash, Digest32, OsImageHash};
use toml::Spanned;

use crate::document::{App, Document, Kms};

/// Largest file that is read.
pub const MAX_ALLOW_LIST_BYTES: u64 = 8 << 20;
const VERSION: u32 = 1;
/// Intel's words, without `Revoked`, which no policy can accept.
const TCB_STATUSES: [&str; 6] = [
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
];
/// Kinds of TEE that evidence can be of.
const TEE_VARIANTS: [&str; 2] = ["dstack-tdx", "dstack-amd-sev-snp"];
/// What a list accepts that names none: one kind, so that an image allowed for it is not allowed on another unnoticed.
const DEFAULT_TEE_VARIANT: &str = "dstack-tdx";

/// An allow list that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AllowListError {
    /// Cannot be read.
    #[error("reading the allow list {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Larger than [`MAX_ALLOW_LIST_BYTES`].
    #[error("the allow list {} has more than {MAX_ALLOW_LIST_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Breaks a rule.
    #[error("{}:{line}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The rule.
        reason: String,
    },
}

impl UserFacing for AllowListError {
    fn code(&self) -> &'static str {
        match self {
            Self::Read { .. } => "authorization/allow-list-unreadable",
            Self::TooLarge { .. } => "authorization/allow-list-too-large",
            Self::Invalid { .. } => "authorization/allow-list-invalid",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Read { path, .. } => {
                format!("create {} or let this user read it; `version = 1` alone is a list that allows nothing", path.display())
            }
            Self::TooLarge { path } => format!("remove what is no longer needed from {}", path.display()),
            Self::Invalid { path, line, .. } => format!("correct line {line} of {}", path.display()),
        }
    }
}

/// Machines an app may run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Devices {
    /// All of them.
    Any,
    /// Those with these ids; never empty.
    Only(BTreeSet<Digest32>),
}

impl Devices {
    pub(crate) fn contains(&self, device_id: &Digest32) -> bool {
        match self {
            Self::Any => true,
            Self::Only(ids) => ids.contains(device_id),
        }
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any device"),
            Self::Only(ids) => write!(f, "device {}", ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        }
    }
}

/// What one app may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedApp {
    /// Its documents.
    pub compose_hashes: BTreeSet<ComposeHash>,
    /// Its machines.
    pub devices: Devices,
}

/// A checked allow list. What is not on it is denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowList {
    pub(crate) gateway_app_id: Option<AppId>,
    pub(crate) tcb_statuses: BTreeSet<String>,
    pub(crate) rejected_advisories: BTreeSet<String>,
    pub(crate) tee_variants: BTreeSet<String>,
    pub(crate) max_evidence_age_seconds: Option<u64>,
    pub(crate) os_images: BTreeSet<OsImageHash>,
    pub(crate) apps: BTreeMap<AppId, AllowedApp>,
    pub(crate) kms: Option<(BTreeSet<Digest32>, Devices)>,
    pub(crate) allow_simulated: bool,
}

impl AllowList {
    /// Reads and checks a file.
    ///
    /// Errors: unreadable, too large, or a broken rule with its line.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, AllowListError> {
        Self::parse(&read_limited(path.as_ref())?, path.as_ref())
    }

    /// Checks `text`, which came from `path`.
    ///
    /// Errors: a broken rule with its line.
    pub fn parse(text: &str, path: &Path) -> Result<Self, AllowListError> {
        let invalid = |span: Option<Range<usize>>, reason: String| AllowListError::Invalid {
            path: path.to_owned(),
            line: line_of(text, span),
            reason,
        };
        let document: Document = toml::from_str(text).map_err(|error| invalid(error.span(), error.message().to_owned()))?;
        Self::check(document).map_err(|problem| invalid(Some(problem.span), problem.reason))
    }

    fn check(document: Document) -> Result<Self, Problem> {
        if *document.version.get_ref() != VERSION {
            return Err(Problem::at(&document.version, format!("version must be {VERSION}")));
        }
        let mut os_images = BTreeSet::new();
        for image in &document.os_images {
            if !os_images.insert(parse::<OsImageHash>(&image.hash)?) {
                return Err(Problem::at(&image.hash, "this OS image is listed twice"));
            }
        }
        let mut apps = BTreeMap::new();
        for app in &document.apps {
            let app_id: AppId = parse(&app.get_ref().app_id)?;
            if apps.insert(app_id, check_app(app)?).is_some() {
                return Err(Problem::at(&app.get_ref().app_id, "this app is listed twice"));
            }
        }
        Ok(Self {
            gateway_app_id: document.gateway_app_id.as_ref().map(parse).transpose()?,
            tcb_statuses: check_tcb(document.tcb_statuses.as_ref())?,
            rejected_advisories: document.rejected_advisories.into_iter().collect(),
            tee_variants: check_tee_variants(document.tee_variants.as_ref())?,
            max_evidence_age_seconds: document.max_evidence_age_seconds.as_ref().map(check_age).transpose()?,
            os_images,
            apps,
            kms: document.kms.as_ref().map(check_kms).transpose()?,
            allow_simulated: document.danger.allow_simulated,
        })
    }

    /// The app that acts as gateway for all apps, if there is one.
    #[must_use]
    pub fn gateway_app_id(&self) -> Option<&AppId> {
        self.gateway_app_id.as_ref()
    }

    /// Apps by id.
    #[must_use]
    pub fn apps(&self) -> &BTreeMap<AppId, AllowedApp> {
        &self.apps
    }

    /// OS images.
    #[must_use]
    pub fn os_images(&self) -> &BTreeSet<OsImageHash> {
        &self.os_images
    }

    /// Whether evidence of a software TEE is accepted.
    #[must_use]
    pub fn accepts_simulated(&self) -> bool {
        self.allow_simulated
    }
}

/// A broken rule and where it is.
struct Problem {
    span: Range<usize>,
    reason: String,
}

impl Problem {
    fn at<T>(place: &Spanned<T>, reason: impl Into<String>) -> Self {
        Self { span: place.span(), reason: reason.into() }
    }
}

fn parse<T: FromStr<Err: fmt::Display>>(text: &Spanned<String>) -> Result<T, Problem> {
    text.get_ref().parse().map_err(|error: T::Err| Problem::at(text, error.to_string()))
}

fn parse_set<T: FromStr<Err: fmt::Display> + Ord>(items: &[Spanned<String>]) -> Result<BTreeSet<T>, Problem> {
    items.iter().map(parse).collect()
}

fn check_app(app: &Spanned<App>) -> Result<AllowedApp, Problem> {
    let inner = app.get_ref();
    Ok(AllowedApp { compose_hashes: parse_set(&inner.compose_hashes)?, devices: check_devices(app, inner.any_device, &inner.devices)? })
}

fn check_kms(kms: &Spanned<Kms>) -> Result<(BTreeSet<Digest32>, Devices), Problem> {
    let inner = kms.get_ref();
    Ok((parse_set(&inner.mr_aggregated)?, check_devices(kms, inner.any_device, &inner.devices)?))
}

/// "Any" must be said; an empty list is a mistake and not "any".
fn check_devices<T>(place: &Spanned<T>, any: bool, only: &[Spanned<String>]) -> Result<Devices, Problem> {
    match (any, only) {
        (true, []) => Ok(Devices::Any),
        (false, [_, ..]) => Ok(Devices::Only(parse_set(only)?)),
        (true, [first, ..]) => Err(Problem::at(first, "devices and any_device = true contradict each other")),
        (false, []) => Err(Problem::at(place, "say any_device = true, or list devices")),
    }
}

fn check_tcb(statuses: Option<&Spanned<Vec<Spanned<String>>>>) -> Result<BTreeSet<String>, Problem> {
    let Some(statuses) = statuses else { return Ok(BTreeSet::from(["UpToDate".to_owned()])) };
    if statuses.get_ref().is_empty() {
        return Err(Problem::at(statuses, "an empty list denies everything; leave the key out for UpToDate only"));
    }
    statuses.get_ref().iter().map(check_tcb_status).collect()
}

fn check_tcb_status(status: &Spanned<String>) -> Result<String, Problem> {
    if TCB_STATUSES.contains(&status.get_ref().as_str()) {
        return Ok(status.get_ref().clone());
    }
    let known = TCB_STATUSES.join(", ");
    Err(Problem::at(status, format!("unknown or never acceptable TCB status; known are {known}")))
}

fn check_tee_variants(variants: Option<&Spanned<Vec<Spanned<String>>>>) -> Result<BTreeSet<String>, Problem> {
    let Some(variants) = variants else { return Ok(BTreeSet::from([DEFAULT_TEE_VARIANT.to_owned()])) };
    if variants.get_ref().is_empty() {
        return Err(Problem::at(variants, "an empty list denies everything; leave the key out for dstack-tdx only"));
    }
    let check = |variant: &Spanned<String>| match TEE_VARIANTS.contains(&variant.get_ref().as_str()) {
        true => Ok(variant.get_ref().clone()),
        false => Err(Problem::at(variant, format!("unknown kind of TEE; known are {}", TEE_VARIANTS.join(", ")))),
    };
    variants.get_ref().iter().map(check).collect()
}

fn check_age(seconds: &Spanned<u64>) -> Result<u64, Problem> {
    match *seconds.get_ref() {
        0 => Err(Problem::at(seconds, "no evidence is that fresh; leave the key out to accept evidence of any age")),
        seconds => Ok(seconds),
    }
}

pub(crate) fn read_limited(path: &Path) -> Result<String, AllowListError> {
    use std::io::Read as _;
    let read_error = |source| AllowListError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(read_error)?;
    let mut text = String::new();
    file.take(MAX_ALLOW_LIST_BYTES + 1).read_to_string(&mut text).map_err(read_error)?;
    if text.len() as u64 > MAX_ALLOW_LIST_BYTES {
        return Err(AllowListError::TooLarge { path: path.to_owned() });
    }
    Ok(text)
}

fn line_of(text: &str, span: Option<Range<usize>>) -> usize {
    let start = span.map_or(0, |span| span.start).min(text.len());
    text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests;
