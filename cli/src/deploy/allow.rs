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
    pub(crate) fn grant(self) -> Outcome<Granted> {
        let Some((list, edits)) = self.0 else { return Ok(Granted(None)) };
        // Planned anew: another deployment may have changed the list since.
        let plan = list.plan(&edits)?;
        let changes = plan.changes().to_vec();
        plan.save()?;
        Ok(Granted(Some((list, changes))))
    }
}

/// A permission that was given.
#[derive(Debug)]
pub(crate) struct Granted(Option<(AllowListFile, Vec<Change>)>);

impl Granted {
    /// Takes back what was new: nobody runs what it was for.
    ///
    /// Errors: the list cannot be changed.
    pub(crate) fn take_back(self) -> Outcome {
        let Some((list, changes)) = self.0 else { return Ok(()) };
        let opposite = |change: &Change| match change {
            Change::OsImageAllowed(hash) => Some(Edit::RevokeOsImage { hash: *hash }),
            Change::AppAdded(app_id, _) => Some(Edit::RevokeApp { app_id: *app_id }),
            Change::ComposeHashAllowed(app_id, compose_hash) => {
                Some(Edit::RevokeComposeHash { app_id: *app_id, compose_hash: *compose_hash })
            }
            _ => None,
        };
        // The last change first: a document goes before its app.
        let edits: Vec<Edit> = changes.iter().rev().filter_map(opposite).collect();
        Ok(list.plan(&edits)?.save()?)
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use std::fs;

    use super::*;

    fn edits(app: u8, hash: u8) -> Vec<Edit> {
        vec![
            Edit::AllowOsImage { hash: OsImageHash::new([7; 32]), note: "image".to_owned() },
            Edit::AllowApp {
                app_id: AppId::new([app; 20]),
                compose_hash: ComposeHash::new([hash; 32]),
                devices: Devices::Any,
                note: "app".to_owned(),
            },
        ]
    }

    #[test]
    fn what_is_taken_back_is_what_was_new_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("allow-list.toml");
        let list = AllowListFile::new(&path);
        list.plan_create(true).save().unwrap();
        let empty = fs::read_to_string(&path).unwrap();

        let first = Permission(Some((list.clone(), edits(1, 1)))).grant().unwrap();
        let one = fs::read_to_string(&path).unwrap();
        for (app, hash) in [(1, 2), (2, 1), (1, 1)] {
            Permission(Some((list.clone(), edits(app, hash)))).grant().unwrap().take_back().unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), one, "app {app}, document {hash}");
        }
        first.take_back().unwrap();

        assert_eq!(fs::read_to_string(&path).unwrap(), empty);
    }
}
