//! `dstack image pack`.

use std::path::{Path, PathBuf};

use dstack_os_image::{tools::Toolbox, volume};

use crate::{
    failure::{Failure, Outcome},
    home::Home,
    output::{Output, fields, human_bytes},
    progress::Progress,
};

/// Packs OCI archives into a volume.
///
/// Errors: a missing or malformed archive, or no space.
pub(crate) fn pack(archives: &[PathBuf], folder: Option<&Path>, output: Output) -> Outcome {
    let folder = folder.map_or_else(|| Home::from_env().map(|home| home.volumes()), |folder| Ok(folder.to_owned()))?;
    let paths: Vec<&Path> = archives.iter().map(AsRef::as_ref).collect();
    if let Some(missing) = paths.iter().find(|path| !path.exists()) {
        return Err(Failure::usage("deploy/no-archive", format!("there is no image archive {}", missing.display()), "name an OCI archive"));
    }
    let step = Progress::new(output).step("pack images");
    let packed = volume::pack(&paths, &folder, &Toolbox::for_volumes(&crate::os::cache()?)?)?;
    step.done("");
    let bytes = std::fs::metadata(&packed.path).map_or(0, |metadata| metadata.len());
    let images: Vec<_> =
        packed.images.iter().map(|image| serde_json::json!({ "reference": image.reference, "digest": image.digest })).collect();
    let report = serde_json::json!({ "path": packed.path, "verity_root": packed.verity_root, "bytes": bytes, "images": images });
    output.result(&report, |palette| {
        let mut rows =
            vec![("file", format!("{} ({})", packed.path.display(), human_bytes(bytes))), ("verity root", packed.verity_root.to_string())];
        rows.extend(packed.images.iter().map(|image| ("image", format!("{} {}", image.reference, image.digest))));
        fields(palette, &rows)
    })
}
