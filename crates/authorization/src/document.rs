//! The allow list's TOML form, before its rules are checked. Values keep their position for error messages.

use serde::Deserialize;
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    pub(crate) version: Spanned<u32>,
    #[serde(default)]
    pub(crate) gateway_app_id: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) tcb_statuses: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default)]
    pub(crate) rejected_advisories: Vec<String>,
    #[serde(default)]
    pub(crate) tee_variants: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default)]
    pub(crate) max_evidence_age_seconds: Option<Spanned<u64>>,
    #[serde(default)]
    pub(crate) os_images: Vec<OsImage>,
    #[serde(default)]
    pub(crate) apps: Vec<Spanned<App>>,
    #[serde(default)]
    pub(crate) kms: Option<Spanned<Kms>>,
    #[serde(default)]
    pub(crate) danger: Danger,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OsImage {
    pub(crate) hash: Spanned<String>,
    #[serde(default, rename = "note")]
    pub(crate) _note: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct App {
    pub(crate) app_id: Spanned<String>,
    pub(crate) compose_hashes: Vec<Spanned<String>>,
    #[serde(default)]
    pub(crate) any_device: bool,
    #[serde(default)]
    pub(crate) devices: Vec<Spanned<String>>,
    #[serde(default, rename = "note")]
    pub(crate) _note: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kms {
    pub(crate) mr_aggregated: Vec<Spanned<String>>,
    #[serde(default)]
    pub(crate) any_device: bool,
    #[serde(default)]
    pub(crate) devices: Vec<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(crate) struct Danger {
    #[serde(default)]
    pub(crate) allow_simulated: bool,
}
