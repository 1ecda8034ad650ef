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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use dstack_manifest::AppComposeDocument;

    use super::*;

    fn outcome(compose: &str) -> (Mark, usize) {
        let app = AppCompose::from_document(AppComposeDocument::for_docker_compose("app", compose)).unwrap();
        let mut verdict = Verdict::blank("", "", 0);
        check(&mut verdict, app.raw());
        (verdict.checks.first().unwrap().outcome, verdict.caveats.len())
    }

    #[test]
    fn only_digests_fix_an_image() {
        let pinned = format!("services: {{web: {{image: \"nginx@sha256:{}\"}}}}\n", "ab".repeat(32));

        assert_eq!(outcome(&pinned), (Mark::Passed, 0));
        assert_eq!(outcome("services: {web: {image: nginx}}\n"), (Mark::Remark, 1));
        assert_eq!(outcome("services: {web: {image: \"nginx:1.27\"}}\n"), (Mark::Remark, 1));
        assert_eq!(outcome("hello"), (Mark::Skipped, 0));
    }
}
