//! What the application demands of this guest. Checked before anything is measured; a demand we cannot meet ends the boot.

use std::{fs, path::Path};

use dstack_api::UserFacing;
use dstack_manifest::{AppCompose, KeyProviderKind, Runner, StorageFs, TdxAttestationVariant, VmConfig};
use sha2::{Digest as _, Sha256};

/// The only platform of this release.
pub const PLATFORM: &str = "dstack-tdx";
const MIN_LAUNCH_TOKEN_BYTES: usize = 32;

/// A demand that is not met.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequirementError {
    /// The app needs something this release does not have.
    #[error("{feature} is not implemented in this release of dstack-os")]
    NotImplemented {
        /// What.
        feature: &'static str,
    },
    /// The app and this guest do not fit.
    #[error("the app requires {requirement}, and {found}")]
    Unmet {
        /// The demand.
        requirement: String,
        /// What there is.
        found: String,
    },
}

impl UserFacing for RequirementError {
    fn code(&self) -> &'static str {
        match self {
            Self::NotImplemented { .. } => "guest/not-implemented",
            Self::Unmet { .. } => "guest/requirement-unmet",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::NotImplemented { .. } => "deploy the app without it, or with a release that has it".to_owned(),
            Self::Unmet { .. } => "change the requirement in app-compose.json or run the app where it is met".to_owned(),
        }
    }
}

/// What the demands are compared with.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The host's VM configuration.
    pub vm_config: &'a VmConfig,
    /// `VERSION_ID` of the OS.
    pub os_version: &'a str,
    /// The opaque user configuration, if there is one.
    pub user_config: Option<&'a [u8]>,
}

/// Checks all demands of the document.
///
/// Errors: the first one that is not met.
pub fn check(app: &AppCompose, surroundings: Surroundings<'_>) -> Result<(), RequirementError> {
    check_features(app)?;
    let Some(requirements) = &app.document().requirements else { return Ok(()) };
    if let Some(wanted) = &requirements.os_version {
        check_os_version(wanted, surroundings.os_version)?;
    }
    if let Some(platforms) = &requirements.platforms
        && !platforms.iter().any(|platform| platform == PLATFORM)
    {
        return unmet(format!("one of the platforms {platforms:?}"), format!("this is {PLATFORM}"));
    }
    if requirements.tdx_measure_acpi_tables == Some(true) && surroundings.vm_config.tdx_attestation_variant == TdxAttestationVariant::Lite {
        return unmet("measured ACPI tables".to_owned(), "the host chose the attestation variant lite".to_owned());
    }
    if let Some(hash) = &requirements.launch_token_hash {
        check_launch_token(hash, surroundings.user_config)?;
    }
    if requirements.gpu_policy.is_some() {
        return Err(RequirementError::NotImplemented { feature: "requirements.gpu_policy" });
    }
    Ok(())
}

fn check_features(app: &AppCompose) -> Result<(), RequirementError> {
    let document = app.document();
    let absent = [
        (document.runner != Runner::DockerCompose, "every runner but docker-compose"),
        (document.key_provider() == KeyProviderKind::Local, "key_provider \"local\""),
        (document.key_provider() == KeyProviderKind::Tpm, "key_provider \"tpm\""),
        (document.storage_fs == Some(StorageFs::Zfs), "storage_fs \"zfs\""),
        (document.secure_time, "secure_time"),
        (document.gateway_enabled, "gateway_enabled"),
    ];
    match absent.into_iter().find(|(used, _)| *used) {
        Some((_, feature)) => Err(RequirementError::NotImplemented { feature }),
        None => Ok(()),
    }
}

fn check_os_version(wanted: &str, version: &str) -> Result<(), RequirementError> {
    let found = format!("this is version {version:?}");
    let matches = semver::VersionReq::parse(wanted).ok().zip(semver::Version::parse(version).ok()).is_some_and(|(req, v)| req.matches(&v));
    if matches { Ok(()) } else { unmet(format!("OS version {wanted:?}"), found) }
}

fn check_launch_token(hash: &str, user_config: Option<&[u8]>) -> Result<(), RequirementError> {
    let requirement = || "a launch token".to_owned();
    let token = user_config
        .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(bytes).ok())
        .and_then(|config| config.pointer("/dstack/launch_token").and_then(|token| token.as_str().map(str::to_owned)));
    let Some(token) = token else {
        return unmet(requirement(), "the user configuration has none at /dstack/launch_token".to_owned());
    };
    if token.len() < MIN_LAUNCH_TOKEN_BYTES {
        return unmet(requirement(), format!("the one given is shorter than {MIN_LAUNCH_TOKEN_BYTES} bytes"));
    }
    let digest = hex::encode(Sha256::new().chain_update("dstack-launch-token/v1:").chain_update(&token).finalize());
    if digest.eq_ignore_ascii_case(hash.strip_prefix("0x").unwrap_or(hash)) {
        Ok(())
    } else {
        unmet(requirement(), "the one given has another hash".to_owned())
    }
}

fn unmet(requirement: String, found: String) -> Result<(), RequirementError> {
    Err(RequirementError::Unmet { requirement, found })
}

/// `VERSION_ID` of an `os-release` file; empty where there is none.
#[must_use]
pub fn os_version(os_release: &Path) -> String {
    os_release_field(os_release, "VERSION_ID")
}

/// One field of an `os-release` file, unquoted; empty where there is none.
#[must_use]
pub fn os_release_field(os_release: &Path, field: &str) -> String {
    let text = fs::read_to_string(os_release).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix('='));
    value.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    fn must_parse(extra: &str) -> AppCompose {
        let secure_time = if extra.contains("secure_time") { "" } else { r#","secure_time":false"# };
        let text = format!(
            r#"{{"manifest_version":"3","name":"t","runner":"docker-compose","docker_compose_file":"services: {{}}"{secure_time}{extra}}}"#
        );
        AppCompose::parse(text.into_bytes()).unwrap()
    }

    fn checked(extra: &str, user_config: Option<&[u8]>) -> Result<(), RequirementError> {
        let vm_config = VmConfig { tdx_attestation_variant: TdxAttestationVariant::Lite, ..VmConfig::default() };
        check(&must_parse(extra), Surroundings { vm_config: &vm_config, os_version: "0.7.0", user_config })
    }

    #[test]
    fn a_plain_app_demands_nothing() {
        checked("", None).unwrap();
    }

    #[test]
    fn what_is_not_implemented_says_so() {
        for extra in [
            r#","key_provider":"local""#,
            r#","key_provider":"tpm""#,
            r#","storage_fs":"zfs""#,
            r#","secure_time":true"#,
            r#","gateway_enabled":true"#,
            r#","requirements":{"gpu_policy":{}}"#,
        ] {
            let error = checked(extra, None).unwrap_err();
            assert_eq!(error.code(), "guest/not-implemented", "{extra}: {error}");
        }
    }

    #[test]
    fn demands_are_compared_with_this_guest() {
        checked(r#","requirements":{"os_version":">=0.7.0, <1","platforms":["dstack-tdx"],"tdx_measure_acpi_tables":false}"#, None)
            .unwrap();

        for extra in [
            r#","requirements":{"os_version":">=0.8.0"}"#,
            r#","requirements":{"os_version":"nonsense"}"#,
            r#","requirements":{"platforms":[]}"#,
            r#","requirements":{"platforms":["dstack-gcp-tdx"]}"#,
            r#","requirements":{"tdx_measure_acpi_tables":true}"#,
        ] {
            assert!(matches!(checked(extra, None), Err(RequirementError::Unmet { .. })), "{extra}");
        }
    }

    /// Vector of the launch token hash, SPEC of app-compose.
    #[test]
    fn launch_token_must_hash_to_the_demanded_value() {
        let extra = r#","requirements":{"launch_token_hash":"b6263115fd8657aee9b3a829b36602b2c79dae3e4d612d2e97b4a17f10897fe3"}"#;
        checked(extra, Some(br#"{"dstack":{"launch_token":"0123456789abcdef0123456789abcdef"}}"#)).unwrap();

        for user_config in [
            None,
            Some(&b"not json"[..]),
            Some(br#"{"dstack":{"launch_token":"short"}}"#),
            Some(br#"{"dstack":{"launch_token":"0123456789abcdef0123456789abcdeX"}}"#),
        ] {
            assert!(checked(extra, user_config).is_err(), "{user_config:?}");
        }
    }
}
