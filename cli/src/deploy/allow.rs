//! Telling the KMS what may have keys.

use dstack_authorization::{Devices, Edit};
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

/// Extends the allow list of a local stack after showing what it will allow; for other stacks shows what must be allowed.
///
/// Errors: not confirmed, or the list cannot be changed.
pub(super) fn allow(vmm: &Vmm, subject: &Subject<'_>, is_confirmed: bool, output: Output) -> Outcome {
    let palette = output.error_palette;
    let Some(local) = &vmm.local else {
        let rows = [
            ("app", subject.app_id.to_string()),
            ("compose hash", subject.compose_hash.to_string()),
            ("OS image", subject.image.to_owned()),
        ];
        output.note(&format!("The KMS must allow this app; its operator needs:\n{}", fields(palette, &rows)));
        return Ok(());
    };
    let hash: OsImageHash = ImageStore::new(local.images()).load(subject.image)?.os_image_hash();
    let edits = [
        Edit::AllowOsImage { hash, note: subject.image.to_owned() },
        Edit::AllowApp { app_id: subject.app_id, compose_hash: subject.compose_hash, devices: Devices::Any, note: subject.name.to_owned() },
    ];
    let plan = local.allow_list().plan(&edits)?;
    if plan.changes().is_empty() {
        return Ok(());
    }
    let rows = [
        ("app", format!("{} ({})", subject.app_id, subject.name)),
        ("compose hash", subject.compose_hash.to_string()),
        ("OS image", format!("{hash} ({})", subject.image)),
    ];
    let changes: Vec<String> = plan.changes().iter().map(|change| format!("  + {change}")).collect();
    let head = palette.paint(Tone::Strong, "The local KMS will hand keys to:");
    let note = palette.paint(Tone::Quiet, &format!("Changes of the allow list:\n{}", changes.join("\n")));
    output.note(&format!("{head}\n{}\n{note}", fields(palette, &rows)));
    if !is_confirmed {
        if !ask::is_possible() {
            return Err(Failure::usage(
                "deploy/not-confirmed",
                "the allow list must change, and there is no terminal to ask at",
                "add --yes",
            ));
        }
        ask::confirm("Allow this?")?;
    }
    plan.save()?;
    Ok(())
}
