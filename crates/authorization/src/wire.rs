//! Facts as the policy webhook sends them, and back.

use std::str::FromStr;

use dstack_api::{UserFacing, policy_webhook::PolicyBootInfo};
use dstack_manifest::InstanceId;

use crate::BootFacts;

/// A field that does not hold what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct FactsError {
    field: &'static str,
    reason: String,
}

impl UserFacing for FactsError {
    fn code(&self) -> &'static str {
        "authorization/bad-facts"
    }

    fn fix(&self) -> String {
        format!("give {} as lower-case hex of its full length, or leave it empty", self.field)
    }
}

/// What is asked at a policy service.
#[must_use]
pub fn boot_info(facts: &BootFacts) -> PolicyBootInfo {
    let text = |value: Option<String>| value.unwrap_or_default();
    PolicyBootInfo {
        tee_variant: facts.tee_variant.clone(),
        mr_aggregated: text(facts.mr_aggregated.map(|digest| digest.to_string())),
        os_image_hash: text(facts.os_image_hash.map(|hash| hash.to_string())),
        mr_system: facts.mr_system.to_string(),
        app_id: text(facts.app_id.map(|id| id.to_string())),
        compose_hash: text(facts.compose_hash.map(|hash| hash.to_string())),
        instance_id: facts.instance_id.to_string(),
        device_id: facts.device_id.to_string(),
        key_provider_info: hex::encode(&facts.key_provider),
        tcb_status: facts.tcb_status.clone(),
        advisory_ids: facts.advisory_ids.clone(),
        simulated: facts.is_simulated,
        evidence_age_seconds: facts.evidence_age_seconds,
    }
}

/// Facts from a question. What the wire does not tell, the KMS that asks has checked: that the boot's identity is complete and
/// that it has no keys yet.
///
/// Errors: a field of another length, or not hex. Nothing is padded.
pub fn parse_boot_info(info: &PolicyBootInfo) -> Result<BootFacts, FactsError> {
    Ok(BootFacts {
        app_id: optional("appId", &info.app_id)?,
        instance_id: optional("instanceId", &info.instance_id)?.unwrap_or(InstanceId::NONE),
        compose_hash: optional("composeHash", &info.compose_hash)?,
        os_image_hash: optional("osImageHash", &info.os_image_hash)?,
        is_identity_complete: true,
        is_after_boot: false,
        mr_aggregated: optional("mrAggregated", &info.mr_aggregated)?,
        mr_system: optional("mrSystem", &info.mr_system)?.unwrap_or(dstack_manifest::Digest32::new([0; 32])),
        key_provider: hex::decode(bare(&info.key_provider_info))
            .map_err(|error| FactsError { field: "keyProviderInfo", reason: error.to_string() })?,
        tee_variant: info.tee_variant.clone(),
        device_id: optional("deviceId", &info.device_id)?
            .ok_or_else(|| FactsError { field: "deviceId", reason: "is missing".to_owned() })?,
        tcb_status: info.tcb_status.clone(),
        advisory_ids: info.advisory_ids.clone(),
        is_simulated: info.simulated,
        evidence_age_seconds: info.evidence_age_seconds,
    })
}

fn bare(text: &str) -> &str {
    text.strip_prefix("0x").unwrap_or(text)
}

fn optional<T: FromStr<Err: std::fmt::Display>>(field: &'static str, text: &str) -> Result<Option<T>, FactsError> {
    if bare(text).is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error: T::Err| FactsError { field, reason: error.to_string() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    fn info() -> PolicyBootInfo {
        PolicyBootInfo {
            tee_variant: "dstack-tdx".into(),
            mr_aggregated: "05".repeat(32),
            os_image_hash: "01".repeat(32),
            mr_system: "06".repeat(32),
            app_id: "02".repeat(20),
            compose_hash: "03".repeat(32),
            instance_id: "07".repeat(20),
            device_id: "04".repeat(32),
            key_provider_info: "7b7d".into(),
            tcb_status: "UpToDate".into(),
            advisory_ids: vec!["INTEL-SA-1".into()],
            simulated: false,
            evidence_age_seconds: None,
        }
    }

    #[test]
    fn facts_survive_the_way_there_and_back() {
        let facts = parse_boot_info(&info()).unwrap();

        assert_eq!(boot_info(&facts), info());
    }

    #[test]
    fn names_are_those_of_deployed_servers() {
        let text = serde_json::to_string(&info()).unwrap();

        for name in ["teeVariant", "mrAggregated", "osImageHash", "mrSystem", "appId", "composeHash", "instanceId", "deviceId"] {
            assert!(text.contains(&format!("\"{name}\":")), "{name}");
        }
        assert!(!text.contains("simulated") && !text.contains("evidenceAge"), "strict servers know nothing of these: {text}");
    }

    #[test]
    fn short_long_and_odd_hex_is_refused_and_not_padded() {
        type Change = fn(&mut PolicyBootInfo);
        let changes: [Change; 7] = [
            |i| i.app_id = "02".repeat(19),
            |i| i.compose_hash = "03".repeat(31),
            |i| i.os_image_hash.push('0'),
            |i| i.device_id.clear(),
            |i| i.instance_id = "zz".repeat(20),
            |i| i.mr_aggregated = "05".repeat(33),
            |i| i.key_provider_info = "7".into(),
        ];
        for change in changes {
            let mut changed = info();
            change(&mut changed);

            assert!(parse_boot_info(&changed).is_err(), "{changed:?}");
        }
    }
}
