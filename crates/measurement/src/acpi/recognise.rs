//! From measured digests to the machine whose tables they are.

use super::profile::{AcpiProfile, InterruptTrigger, PciWindow, Release};
use super::{AcpiDigests, tables};
use crate::{VmShape, sha384};

/// The machine that gives a TD of `shape` tables with the digests `logged`, of all whose tables are known.
///
/// A log only says which tables were measured. If they are those of one of these machines, their content is known: QEMU made them,
/// nobody added code of their own. `shape` and `logged` are untrusted; the release `shape` names is tried first, but tables of any
/// other will do, since the answer is about the tables. `None`: nobody knows what is in them.
#[must_use]
pub fn recognise(shape: &VmShape, logged: &AcpiDigests) -> Option<AcpiProfile> {
    let mut releases = Release::ALL;
    let claimed = (shape.qemu_version.major, shape.qemu_version.minor);
    releases.sort_by_key(|release| (release.version().major, release.version().minor) != claimed);
    let profiles = releases.into_iter().flat_map(|release| {
        [InterruptTrigger::Edge, InterruptTrigger::Level].map(|trigger| AcpiProfile { release, trigger, window: PciWindow::OVMF_46_BITS })
    });
    profiles.into_iter().find(|profile| has_tables(shape, *profile, logged))
}

fn has_tables(shape: &VmShape, profile: AcpiProfile, logged: &AcpiDigests) -> bool {
    let shape = VmShape { qemu_version: profile.release.version(), ..shape.clone() };
    let Ok(files) = tables(&shape, profile) else { return false };
    // The loader has the length of each table, so it tells most machines apart; the tables are long.
    sha384(&files.loader) == logged.loader && sha384(&files.rsdp) == logged.rsdp && sha384(&files.tables) == logged.tables
}
