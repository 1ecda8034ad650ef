//! `dstack policy explain`.

use std::io::Read as _;

use dstack_api::{RpcError, UserFacing as _, policy_webhook::PolicyBootInfo};
use dstack_authorization::{Subject, parse_boot_info};
use dstack_release_log::Entry;
use serde::Serialize;

use super::args::PolicyExplainArgs;
use crate::{
    failure::{EXIT_NEGATIVE, Failure, Outcome},
    output::{Output, Tone},
};

/// Longest description of a boot.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Debug, Serialize)]
struct RuleLine {
    rule: &'static str,
    is_content: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

/// Shows every rule, also behind the one that denies.
pub(super) fn explain(args: &PolicyExplainArgs, output: Output) -> Outcome<u8> {
    let list = super::load(&args.list)?;
    let facts = parse_boot_info(&read(args)?)?;
    let subject = if args.kms { Subject::Kms } else { Subject::App };
    let lines: Vec<RuleLine> = list
        .explain(subject, &facts)
        .into_iter()
        .map(|outcome| RuleLine {
            rule: outcome.rule,
            is_content: outcome.denial.is_none(),
            code: outcome.denial.as_ref().map(|denial| denial.code()),
            cause: outcome.denial.as_ref().map(|denial| RpcError::from_user_facing(denial).message),
            fix: outcome.denial.as_ref().map(|denial| denial.fix()),
        })
        .collect();
    let is_allowed = lines.iter().all(|line| line.is_content);
    output.result(&lines, |palette| {
        let mut text = vec![match is_allowed {
            true => palette.paint(Tone::Good, "allowed"),
            false => palette.paint(Tone::Bad, "denied"),
        }];
        for line in &lines {
            let mark = if line.is_content { palette.paint(Tone::Good, "yes") } else { palette.paint(Tone::Bad, "no ") };
            text.push(format!("  {mark}  {}", line.rule));
            if let (Some(code), Some(cause), Some(fix)) = (line.code, &line.cause, &line.fix) {
                text.push(format!("       {cause} [{code}]\n       fix: {fix}"));
            }
        }
        text.join("\n")
    })?;
    Ok(if is_allowed { 0 } else { EXIT_NEGATIVE })
}

fn read(args: &PolicyExplainArgs) -> Outcome<PolicyBootInfo> {
    let path = &args.boot;
    let mut text = String::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().take(MAX_BYTES).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text))
    };
    read.map_err(|error| Failure::io("reading", path, &error))?;
    if let Ok(entry) = Entry::parse(text.trim().as_bytes()) {
        return Ok(boot_of(&entry));
    }
    serde_json::from_str(&text).map_err(|error| {
        let cause = format!("{}: {error}", path.display());
        Failure::usage("policy/bad-boot", cause, "give the JSON that the policy webhook sends, or an entry of `dstack log watch --json`")
    })
}

/// What an entry of the release log says about its boot.
pub(super) fn boot_of(entry: &Entry) -> PolicyBootInfo {
    PolicyBootInfo {
        tee_variant: entry.platform.clone(),
        mr_aggregated: entry.mr_aggregated.clone(),
        os_image_hash: entry.os_image_hash.clone(),
        mr_system: String::new(),
        app_id: entry.app_id.clone(),
        compose_hash: entry.compose_hash.clone(),
        instance_id: entry.instance_id.clone(),
        device_id: entry.device_id.clone(),
        key_provider_info: String::new(),
        tcb_status: entry.tcb_status.clone(),
        advisory_ids: entry.advisory_ids.clone(),
        simulated: entry.simulated,
        evidence_age_seconds: entry.evidence_age_seconds,
    }
}
