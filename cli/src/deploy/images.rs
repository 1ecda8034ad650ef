//! Container images that travel with the app.

use std::path::Path;

use dstack_os_image::{
    tools::Toolbox,
    volume::{self, PackedVolume},
};

use crate::{
    args::DeployArgs,
    compose::{ComposeFile, interpolate},
    failure::{Failure, Outcome},
    output::human_bytes,
    progress::Progress,
    vms::Vmm,
};

/// Packs the archives that the options name into a volume of the local stack.
///
/// Errors: a missing or malformed archive, a VMM that is not here, images that nothing uses.
pub(super) fn pack(args: &DeployArgs, vmm: &Vmm, compose: &ComposeFile, progress: &Progress) -> Outcome<Option<PackedVolume>> {
    if args.image_archives.is_empty() {
        return Ok(None);
    }
    let archives: Vec<&Path> = args.image_archives.iter().map(AsRef::as_ref).collect();
    if let Some(missing) = archives.iter().find(|archive| !archive.exists()) {
        let cause = format!("there is no image archive {}", missing.display());
        return Err(Failure::usage(
            "deploy/no-archive",
            cause,
            "export the images first, for instance with `skopeo copy … oci-archive:FILE:NAME:TAG`",
        ));
    }
    let Some(local) = &vmm.local else {
        let fix = "pack it with `dstack image pack`, put the volume into the VMM's volumes_dir, or push the image to a registry";
        return Err(Failure::usage("deploy/remote-archive", "image archives can be given to a local stack only", fix));
    };
    let step = progress.step("pack images");
    let packed = volume::pack(&archives, &local.home().volumes(), &Toolbox::for_volumes(&crate::os::cache()?)?)?;
    refuse_unused(&packed, compose, args)?;
    let bytes = std::fs::metadata(&packed.path).map_or(0, |metadata| metadata.len());
    let names: Vec<&str> = packed.images.iter().map(|image| image.reference.as_str()).collect();
    step.done(&format!("{}, {}", names.join(", "), human_bytes(bytes)));
    Ok(Some(packed))
}

/// An archive whose images no service names is most likely a mistake that would show only in the guest.
fn refuse_unused(packed: &PackedVolume, compose: &ComposeFile, args: &DeployArgs) -> Outcome {
    let used: Vec<String> = compose.services.iter().map(|service| normal(&interpolate(&service.image, &|_| None))).collect();
    if packed.images.iter().any(|image| used.contains(&normal(&image.reference))) {
        return Ok(());
    }
    let has: Vec<&str> = packed.images.iter().map(|image| image.reference.as_str()).collect();
    let wants: Vec<&str> = compose.services.iter().map(|service| service.image.as_str()).collect();
    let cause = format!("the archives hold {}, and {} uses {}", has.join(", "), args.compose.display(), wants.join(", "));
    Err(Failure::new("deploy/unused-archive", cause, "write the archive's image name into the compose file"))
}

/// A reference without what docker adds by itself.
fn normal(reference: &str) -> String {
    let bare = reference.strip_prefix("docker.io/").unwrap_or(reference);
    let bare = bare.strip_prefix("library/").unwrap_or(bare);
    let bare = bare.strip_prefix("localhost/").unwrap_or(bare);
    let last = bare.rsplit('/').next().unwrap_or(bare);
    if last.contains([':', '@']) { bare.to_owned() } else { format!("{bare}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_that_mean_the_same_image_are_equal() {
        for same in ["nginx", "nginx:latest", "docker.io/library/nginx", "docker.io/nginx:latest"] {
            assert_eq!(normal(same), "nginx:latest", "{same}");
        }
        assert_eq!(normal("registry:5000/a"), "registry:5000/a:latest");
        assert_eq!(normal("a@sha256:00"), "a@sha256:00");
    }
}
