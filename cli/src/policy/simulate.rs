//! `dstack policy simulate`: would this change stop instances that run?

use std::collections::BTreeMap;

use dstack_api::{RpcError, UserFacing as _};
use dstack_authorization::{AllowList, Subject, parse_boot_info};
use dstack_release_log::{Entry, EventKind};
use dstack_service::clock::unix_seconds;
use serde::Serialize;

use super::{args::PolicySimulateArgs, explain::boot_of};
use crate::{
    failure::{EXIT_NEGATIVE, Outcome},
    log::RemoteLog,
    output::{Output, Tone, table},
};

const DAY_SECONDS: u64 = 24 * 3600;

/// An instance by app and instance id.
type Instance = (String, String);

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Stopped {
    app_id: String,
    instance_id: String,
    last_release: u64,
    code: &'static str,
    cause: String,
}

#[derive(Debug, Serialize)]
struct Simulation {
    instances: usize,
    stopped: Vec<Stopped>,
}

/// Applies the list to the last release of each instance in the log.
pub(super) async fn simulate(args: &PolicySimulateArgs, output: Output) -> Outcome<u8> {
    let list = super::load(&args.list)?;
    let mut log = RemoteLog::open(&args.log).await?;
    let newest = log.checkpoint().await?;
    let since = args.days.map_or(0, |days| unix_seconds().saturating_sub(days.saturating_mul(DAY_SECONDS)));
    let mut instances = BTreeMap::new();
    log.advance(newest.head, |_, entry| remember(&mut instances, entry, since)).await?;
    let simulation = Simulation { instances: instances.len(), stopped: judge(&list, &instances)? };
    output.result(&simulation, |palette| {
        let Simulation { instances, stopped } = &simulation;
        if stopped.is_empty() {
            return palette.paint(Tone::Good, &format!("All {instances} instances would get their keys again."));
        }
        let rows: Vec<Vec<String>> =
            stopped.iter().map(|one| vec![one.app_id.clone(), one.instance_id.clone(), format!("{} [{}]", one.cause, one.code)]).collect();
        let head = format!(
            "{} of {instances} instances would get no keys at their next boot; those that run keep running until then.",
            stopped.len()
        );
        format!("{}\n{}", palette.paint(Tone::Bad, &head), table(palette, &["APP", "INSTANCE", "WHY"], &rows))
    })?;
    Ok(if simulation.stopped.is_empty() { 0 } else { EXIT_NEGATIVE })
}

/// Certificates are renewed by those who have keys already; who boots asks for keys.
fn remember(instances: &mut BTreeMap<Instance, Entry>, entry: &Entry, since: u64) {
    if entry.event == EventKind::Release && entry.method == "GetAppKey" && entry.time >= since {
        instances.insert((entry.app_id.clone(), entry.instance_id.clone()), entry.clone());
    }
}

fn judge(list: &AllowList, instances: &BTreeMap<Instance, Entry>) -> Outcome<Vec<Stopped>> {
    let mut stopped = Vec::new();
    for entry in instances.values() {
        let facts = parse_boot_info(&boot_of(entry))?;
        let Err(denial) = list.decide(Subject::App, &facts) else { continue };
        stopped.push(Stopped {
            app_id: entry.app_id.clone(),
            instance_id: entry.instance_id.clone(),
            last_release: entry.time,
            code: denial.code(),
            cause: RpcError::from_user_facing(&denial).message,
        });
    }
    Ok(stopped)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use std::path::Path;

    use super::*;

    fn release(app: u8, instance: u8, compose: u8, time: u64) -> Entry {
        let hex = |byte: u8, length| format!("{byte:02x}").repeat(length);
        Entry {
            app_id: hex(app, 20),
            instance_id: hex(instance, 20),
            compose_hash: hex(compose, 32),
            os_image_hash: hex(1, 32),
            device_id: hex(4, 32),
            platform: "dstack-tdx".into(),
            tcb_status: "UpToDate".into(),
            method: "GetAppKey".into(),
            ..Entry::new(EventKind::Release, time)
        }
    }

    fn list(compose: u8) -> AllowList {
        let text = format!(
            "version = 1\n[[os_images]]\nhash = \"{}\"\n[[apps]]\napp_id = \"{}\"\ncompose_hashes = [\"{}\"]\nany_device = true\n",
            "01".repeat(32),
            "02".repeat(20),
            format!("{compose:02x}").repeat(32)
        );
        AllowList::parse(&text, Path::new("allow.toml")).unwrap()
    }

    #[test]
    fn only_the_last_boot_of_each_instance_counts() {
        let mut instances = BTreeMap::new();
        let refused = Entry { event: EventKind::Refusal, ..release(2, 9, 7, 5) };
        let certificate = Entry { method: "SignCert".into(), ..release(2, 8, 7, 5) };
        for entry in [release(2, 1, 3, 1), release(2, 1, 5, 2), release(2, 2, 3, 3), refused, certificate] {
            remember(&mut instances, &entry, 0);
        }

        let stopped = judge(&list(5), &instances).unwrap();

        assert_eq!(instances.len(), 2);
        assert_eq!(stopped.len(), 1, "{stopped:?}");
        assert_eq!((stopped[0].instance_id.as_str(), stopped[0].code), ("02".repeat(20).as_str(), "kms/compose-hash-not-allowed"));
        assert!(judge(&list(3), &instances).unwrap().iter().all(|one| one.instance_id == "01".repeat(20)));
    }

    #[test]
    fn releases_before_the_days_looked_at_do_not_count() {
        let mut instances = BTreeMap::new();
        remember(&mut instances, &release(2, 1, 3, 99), 100);

        assert!(instances.is_empty());
    }
}
