//! Telling the KMS what may have keys.

use dstack_authorization::{AllowListFile, Change, Devices, Edit};
use dstack_manifest::{AppId, ComposeHash, OsImageHash};
use dstack_os_image::ImageStore;

use crate::{
    ask,
    failure::{Failure, Outcome},
    output::{Output, Tone, fields},
    vms::Vmm,
};

/// What shall have keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    /// Name of the app.
    pub name: &'a str,
    /// OS image it runs on.
    pub image: &'a str,
    /// The app.
    pub app_id: AppId,
    /// Its document.
    pub compose_hash: ComposeHash,
}

/// A change of an allow list that was shown and confirmed, and not made yet.
#[derive(Debug)]
#[must_use = "nothing is allowed until it is granted"]
pub(crate) struct Permission(Option<(AllowListFile, Vec<Edit>)>);

impl Permission {
    /// Changes the list.
    ///
    /// Errors: it cannot be changed.
    pub(crate) fn grant(self) -> Outcome {
        match self.0 {
            // Planned anew: another deployment may have changed the list since.
            Some((list, edits)) => Ok(list.plan(&edits)?.save()?),
            None => Ok(()),
        }
    }
}

/// Shows what the allow list of a local stack must allow and asks; for other stacks shows what their operator must allow.
///
/// Errors: not confirmed, or the list cannot be read.
pub(crate) fn ask(vmm: &Vmm, subject: &Subject<'_>, is_confirmed: bool, output: Output) -> Outcome<Permission> {
    let palette = output.error_palette;
    let Some(local) = &vmm.local else {
        let rows = [
            ("app", subject.app_id.to_string()),
            ("compose hash", subject.compose_hash.to_string()),
            ("OS image", subject.image.to_owned()),
        ];
        output.note(&format!("The KMS must allow this app; its operator needs:\n{}", fields(palette, &rows)));
        return Ok(Permission(None));
    };
    let hash: OsImageHash = ImageStore::new(local.images()).load(subject.image)?.os_image_hash();
    let edits = vec![
        Edit::AllowOsImage { hash, note: subject.image.to_owned() },
        Edit::AllowApp { app_id: subject.app_id, compose_hash: subject.compose_hash, devices: Devices::Any, note: subject.name.to_owned() },
    ];
    let list = local.allow_list();
    let plan = list.plan(&edits)?;
    if plan.changes().is_empty() {
        return Ok(Permission(None));
    }
    let rows = [
        ("app", format!("{} ({})", subject.app_id, subject.name)),
        ("compose hash", subject.compose_hash.to_string()),
        ("OS image", format!("{hash} ({})", subject.image)),
    ];
    let head = palette.paint(Tone::Strong, "The local KMS will hand keys to");
    let kept = plan.changes().iter().any(|change| matches!(change, Change::OsImageAllowed(_)));
    let note = if kept { "on any machine; both are new on its allow list." } else { "on any machine; the OS image is allowed already." };
    output.note(&format!("{head}\n{}\n  {}", fields(palette, &rows), palette.paint(Tone::Quiet, note)));
    if !is_confirmed {
        if !ask::is_possible() {
            let cause = "the allow list must change, and there is no terminal to ask at";
            return Err(Failure::usage("deploy/not-confirmed", cause, "add --yes"));
        }
        ask::confirm("Allow this?")?;
    }
    Ok(Permission(Some((list, edits))))
}
