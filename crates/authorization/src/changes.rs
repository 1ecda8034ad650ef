//! What differs between two lists.

use std::collections::BTreeSet;

use crate::{AllowList, AllowedApp};

impl AllowList {
    /// What `after` allows and no longer allows, compared with this list: one line each, for people.
    #[must_use]
    pub fn changes_to(&self, after: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        compare("OS image", &self.os_images, &after.os_images, &mut changes);
        compare("TCB status", &self.tcb_statuses, &after.tcb_statuses, &mut changes);
        compare("TEE variant", &self.tee_variants, &after.tee_variants, &mut changes);
        // An advisory on the list is one that is rejected.
        compare("advisory", &after.rejected_advisories, &self.rejected_advisories, &mut changes);
        let app_ids: BTreeSet<_> = self.apps.keys().chain(after.apps.keys()).collect();
        for app_id in app_ids {
            compare_app(&app_id.to_string(), self.apps.get(app_id), after.apps.get(app_id), &mut changes);
        }
        let scalar = |what: &str, is_same: bool, changes: &mut Vec<String>| {
            if !is_same {
                changes.push(format!("{what} changed"));
            }
        };
        scalar("gateway_app_id", self.gateway_app_id == after.gateway_app_id, &mut changes);
        scalar("kms", self.kms == after.kms, &mut changes);
        scalar("max_evidence_age_seconds", self.max_evidence_age_seconds == after.max_evidence_age_seconds, &mut changes);
        scalar("danger.allow_simulated", self.allow_simulated == after.allow_simulated, &mut changes);
        changes
    }
}

fn compare<T: Ord + ToString>(what: &str, before: &BTreeSet<T>, after: &BTreeSet<T>, changes: &mut Vec<String>) {
    changes.extend(after.difference(before).map(|item| format!("allow {what} {}", item.to_string())));
    changes.extend(before.difference(after).map(|item| format!("revoke {what} {}", item.to_string())));
}

fn compare_app(app_id: &str, before: Option<&AllowedApp>, after: Option<&AllowedApp>, changes: &mut Vec<String>) {
    let none = BTreeSet::new();
    let hashes = |app: Option<&AllowedApp>| app.map_or(none.clone(), |app| app.compose_hashes.clone());
    match (before, after) {
        (None, Some(app)) => changes.push(format!("allow app {app_id} on {}", app.devices)),
        (Some(_), None) => changes.push(format!("revoke app {app_id}")),
        (Some(before), Some(after)) if before.devices != after.devices => {
            changes.push(format!("allow app {app_id} on {} instead of {}", after.devices, before.devices));
        }
        _ => {}
    }
    compare(&format!("app {app_id} compose hash"), &hashes(before), &hashes(after), changes);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use std::path::Path;

    use super::*;

    fn list(text: &str) -> AllowList {
        AllowList::parse(&format!("version = 1\n{text}"), Path::new("allow.toml")).unwrap()
    }

    #[test]
    fn every_rule_that_changed_is_named_once() {
        let app =
            |hash: &str, devices: &str| format!("[[apps]]\napp_id = \"{}\"\ncompose_hashes = [\"{hash}\"]\n{devices}\n", "02".repeat(20));
        let (one, two) = ("03".repeat(32), "04".repeat(32));
        let before = list(&format!("rejected_advisories = [\"SA-1\"]\n{}", app(&one, "any_device = true")));
        let after = list(&format!(
            "tcb_statuses = [\"UpToDate\", \"OutOfDate\"]\nmax_evidence_age_seconds = 5\n{}",
            app(&two, &format!("devices = [\"{one}\"]"))
        ));

        let id = "02".repeat(20);
        assert_eq!(
            before.changes_to(&after),
            [
                "allow TCB status OutOfDate".to_owned(),
                "allow advisory SA-1".to_owned(),
                format!("allow app {id} on device {one} instead of any device"),
                format!("allow app {id} compose hash {two}"),
                format!("revoke app {id} compose hash {one}"),
                "max_evidence_age_seconds changed".to_owned(),
            ]
        );
        assert!(before.changes_to(&before).is_empty());
    }
}
