//! `verify.toml`: whom to trust, and what to expect.

use std::path::{Path, PathBuf};

use dstack_attestation::{ImageRule, Policy, QuoteCollateral, TcbStatus, TrustAnchors};
use dstack_manifest::{AppId, ComposeHash, OsImageHash};
use dstack_os_image::ImageStore;
use dstack_ra_tls::collateral::ChipKeyClient;
use dstack_verdict::Expectations;
use serde::Deserialize;

use crate::{
    failure::{Failure, Outcome},
    kms::{read_certificate, spki},
};

/// A public cache of Intel's collateral. Collateral is signed by Intel, so the cache need not be trusted.
const DEFAULT_COLLATERAL_URL: &str = "https://pccs.phala.network";

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    /// Where collateral comes from.
    collateral_url: Option<String>,
    /// Where certificates of AMD's chip keys come from.
    amd_kds_url: Option<String>,
    /// Collateral in a file, JSON.
    collateral_file: Option<PathBuf>,
    /// Directory of OS images that are known to be good.
    image_store: Option<PathBuf>,
    /// Hashes of OS images that are known to be good.
    os_images: Vec<KnownImage>,
    /// Root certificate of the KMS that the app must rely on.
    kms_ca: Option<PathBuf>,
    /// The app that is expected.
    app_id: Option<AppId>,
    /// The documents that are expected.
    compose_hashes: Vec<ComposeHash>,
    /// TCB statuses that are accepted; absent accepts all but `Revoked` and names the others as caveats.
    accepted_tcb: Option<Vec<TcbStatus>>,
    /// Advisories that must not apply.
    rejected_advisories: Vec<String>,
    /// What weakens a guarantee.
    danger: Danger,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownImage {
    hash: OsImageHash,
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Danger {
    /// Root certificate of a software TEE.
    simulated_root: Option<PathBuf>,
}

/// Checked settings.
#[derive(Debug)]
pub(super) struct Settings {
    /// Where they come from, for people.
    pub origin: String,
    /// Roots.
    pub anchors: TrustAnchors,
    /// What the library shall demand.
    pub policy: Policy,
    /// Where collateral comes from.
    pub collateral_url: String,
    /// Where certificates of AMD's chip keys come from.
    pub amd_kds_url: String,
    /// Collateral that is at hand.
    pub collateral: Option<QuoteCollateral>,
    /// What the app must be.
    pub expectations: Expectations,
}

impl Settings {
    /// Hardware vendors' roots, no reference values, no expectations.
    #[must_use]
    pub(super) fn built_in() -> Self {
        Self {
            origin: "none: the cryptographic verdict".to_owned(),
            anchors: TrustAnchors::hardware(),
            policy: Policy::report_only(),
            collateral_url: DEFAULT_COLLATERAL_URL.to_owned(),
            amd_kds_url: ChipKeyClient::AMD.to_owned(),
            collateral: None,
            expectations: Expectations::default(),
        }
    }

    /// Reads a file; paths in it are relative to it.
    ///
    /// Errors: unreadable, invalid, or a file it names is.
    pub(super) fn load(path: &Path, origin: &str) -> Outcome<Self> {
        let file: File = dstack_service::config::load(path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut settings = Self { origin: origin.to_owned(), ..Self::built_in() };
        settings.policy = Policy {
            image: ImageRule::WherePossible,
            accepted_tcb: file.accepted_tcb,
            rejected_advisories: file.rejected_advisories,
            ..settings.policy
        };
        if let Some(url) = file.collateral_url {
            settings.collateral_url = url;
        }
        if let Some(url) = file.amd_kds_url {
            settings.amd_kds_url = url;
        }
        if let Some(named) = &file.collateral_file {
            let named = folder.join(named);
            let text = std::fs::read_to_string(&named).map_err(|error| Failure::io("reading", &named, &error))?;
            let parsed = QuoteCollateral::parse_json(&text);
            settings.collateral = Some(parsed.map_err(|error| {
                Failure::new("verify/bad-collateral", format!("{}: {error}", named.display()), "fetch the collateral again")
            })?);
        }
        if let Some(root) = &file.danger.simulated_root {
            let root = read_certificate(&folder.join(root))?;
            let refused = |error| {
                Failure::new("verify/bad-root", format!("danger.simulated_root: {error}"), "name the software TEE's root certificate")
            };
            settings.anchors = settings.anchors.danger_simulated_root(root.to_vec()).map_err(refused)?;
        }
        if let Some(ca) = &file.kms_ca {
            let ca = folder.join(ca);
            let key = spki(&read_certificate(&ca)?).ok_or_else(|| {
                Failure::new("verify/bad-kms-ca", format!("{} is malformed", ca.display()), "name the KMS's root certificate")
            })?;
            settings.expectations.kms = Some((key, ca.display().to_string()));
        }
        let known = &mut settings.expectations.os_images;
        known.extend(file.os_images.into_iter().map(|image| (image.hash, format!("{}, listed in {}", image.name, path.display()))));
        if let Some(store) = &file.image_store {
            let store = folder.join(store);
            let images = ImageStore::new(&store).list()?.into_iter().filter_map(|entry| entry.image.ok());
            known.extend(images.map(|image| (image.os_image_hash(), format!("{}, in {}", image.name(), store.display()))));
        }
        settings.expectations.app_id = file.app_id;
        settings.expectations.compose_hashes = file.compose_hashes;
        Ok(settings)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn load(text: &str) -> Outcome<Settings> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("verify.toml");
        std::fs::write(&path, text).unwrap();
        Settings::load(&path, "test")
    }

    #[test]
    fn nothing_dangerous_by_default() {
        assert!(!load("").unwrap().anchors.accepts_simulated());
        assert!(!Settings::built_in().anchors.accepts_simulated());
    }

    #[test]
    fn everything_can_be_written() {
        let hash = "ab".repeat(32);
        let text = format!(
            "accepted_tcb = [\"UpToDate\"]\nrejected_advisories = [\"INTEL-SA-1\"]\napp_id = \"{}\"\ncompose_hashes = [\"{hash}\"]\n[[os_images]]\nhash = \"{hash}\"\nname = \"dstack-0.7.0\"\n",
            "cd".repeat(20)
        );

        let settings = load(&text).unwrap();

        assert_eq!(settings.policy.accepted_tcb, Some(vec![TcbStatus::UpToDate]));
        assert_eq!((settings.expectations.os_images.len(), settings.expectations.compose_hashes.len()), (1, 1));
        assert!(settings.expectations.app_id.is_some());
    }

    #[test]
    fn unknown_keys_and_missing_roots_are_refused() {
        assert_eq!(load("simulated_root = \"x\"\n").unwrap_err().report.code, "config/invalid");
        assert_eq!(load("[danger]\nsimulated_root = \"/nonexistent\"\n").unwrap_err().report.code, "cli/file");
    }
}
