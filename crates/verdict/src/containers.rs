//! Which container images an app's document allows.
//!
//! The document is measured, an image name in it is not its content: only `name@sha256:…`, or a volume with a verity root, is.

use dstack_manifest::AppCompose;
use serde_yaml_ng::Value;

use crate::{Mark, Verdict};

/// Images named in a compose file, and whether each is fixed by a digest.
fn images(app: &AppCompose) -> Option<Vec<(String, bool)>> {
    let document = app.document();
    let compose: Value = serde_yaml_ng::from_str(document.docker_compose_file.as_deref()?).ok()?;
    let services = compose.get("services")?.as_mapping()?;
    let named = services.values().filter_map(|service| service.get("image").and_then(Value::as_str));
    let is_pinned = |image: &str| {
        image.contains("@sha256:")
            || document.preloaded_images.iter().any(|loaded| loaded.reference == image && loaded.digest.starts_with("sha256:"))
    };
    Some(named.map(|image| (image.to_owned(), is_pinned(image))).collect())
}

/// Says which images are not fixed by the measured document.
pub(crate) fn check(verdict: &mut Verdict, document: &[u8]) {
    const SAYS: &str = "its container images are fixed by digest";
    let Some(images) = AppCompose::parse(document.to_vec()).ok().as_ref().and_then(images) else {
        verdict.check("images-pinned", Mark::Skipped, SAYS, "the document has no compose file that could be read");
        return;
    };
    let loose: Vec<&str> = images.iter().filter(|(_, pinned)| !pinned).map(|(image, _)| image.as_str()).collect();
    if loose.is_empty() {
        verdict.check("images-pinned", Mark::Passed, SAYS, format!("{} of {}", images.len(), images.len()));
        return;
    }
    let list = loose.join(", ");
    verdict.check("images-pinned", Mark::Remark, SAYS, format!("not fixed: {list}"));
    verdict.caveats.push(format!("Whoever controls the registry decides what runs under the name {list}: it is not fixed by a digest."));
}
