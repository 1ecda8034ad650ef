//! `app-compose.json` from what the user brought.

use std::path::Path;

use dstack_key_hierarchy::EnvVar;
use dstack_manifest::{AppCompose, AppComposeDocument, KeyScheme, PreloadedImage, Requirements, VerityVolume};
use dstack_os_image::volume::PackedVolume;

use crate::{
    compose::ComposeFile,
    failure::{Failure, Outcome},
};

/// Where the guest mounts the first volume.
const VOLUME_TARGET: &str = "/run/dstack/volumes/0";

/// The app's name: the option, the compose file's, or the folder's.
///
/// Errors: a name that the VMM would refuse.
pub(super) fn name(option: Option<&str>, compose: &ComposeFile, path: &Path) -> Outcome<String> {
    let folder = || {
        let path = std::path::absolute(path).ok()?;
        Some(path.parent()?.file_name()?.to_str()?.to_owned())
    };
    let name = option.map(str::to_owned).or_else(|| compose.name.clone()).or_else(folder).unwrap_or_default();
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 63 || !name.chars().all(is_good) || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        let fix = "name the app with -n: letters, digits, - _ and ., at most 63, a letter or digit first";
        return Err(Failure::usage("deploy/bad-name", format!("`{name}` is no name for an app"), fix));
    }
    Ok(name)
}

/// The scheme that the option names.
///
/// Errors: an environment is to be sealed as well, to a key that the instance does not have before its first boot.
pub(super) fn key_scheme(option: &str, vars: &[EnvVar]) -> Outcome<KeyScheme> {
    match option {
        "separated" if !vars.is_empty() => Err(Failure::usage(
            "deploy/separated-environment",
            "separated keys are those of an instance, which has no environment key before its first boot",
            "leave out -e and let the app ask for its secrets, or leave out --key-scheme",
        )),
        "separated" => Ok(KeyScheme::Separated),
        _ => Ok(KeyScheme::Compatible),
    }
}

/// The measured document of an app.
///
/// `kms_id`: pins the KMS, so that no other one can hand it keys.
///
/// Errors: fields that contradict each other.
pub(super) fn build(
    name: &str,
    compose: &ComposeFile,
    vars: &[EnvVar],
    kms_id: &str,
    key_scheme: KeyScheme,
    volume: Option<&PackedVolume>,
) -> Outcome<AppCompose> {
    let mut document = AppComposeDocument::for_docker_compose(name, &compose.text);
    kms_id.clone_into(&mut document.key_provider_id);
    document.allowed_envs = vars.iter().map(|var| var.key.clone()).collect();
    document.allowed_envs.sort();
    if key_scheme != KeyScheme::Compatible {
        document.demand(Requirements { key_scheme: Some(key_scheme), ..Requirements::default() });
    }
    if let Some(volume) = volume {
        document.verity_volumes = vec![VerityVolume {
            source: format!("{}.img", volume.verity_root),
            verity_root: volume.verity_root,
            target: VOLUME_TARGET.to_owned(),
        }];
        let preloaded = |image: &dstack_os_image::volume::PackedImage| PreloadedImage {
            reference: image.reference.clone(),
            digest: image.digest.clone(),
            volume: 0,
        };
        document.preloaded_images = volume.images.iter().map(preloaded).collect();
    }
    AppCompose::from_document(document).map_err(|error| Failure::new("deploy/bad-app", error.to_string(), "correct the named field"))
}
