//! The other side of the policy webhook: an allow list that answers the questions of any KMS that speaks it.

use dstack_api::{
    RpcError,
    policy_webhook::{PolicyAnswer, PolicyBootInfo, PolicyServerInfo},
};

use crate::{AllowList, Subject, parse_boot_info};

/// What a KMS is told whose question is not understood.
const INVALID: &str = "invalid authorization request";

/// Answers a question. `body`: untrusted JSON.
///
/// Errors: the question is not understood; the answer says no, and the cause is for the operator.
pub fn answer(list: &AllowList, subject: Subject, body: &[u8]) -> Result<PolicyAnswer, (PolicyAnswer, String)> {
    let refuse =
        |cause: String| (PolicyAnswer { is_allowed: false, gateway_app_id: Some(String::new()), reason: Some(INVALID.to_owned()) }, cause);
    let info: PolicyBootInfo = serde_json::from_slice(body).map_err(|error| refuse(error.to_string()))?;
    let facts = parse_boot_info(&info).map_err(|error| refuse(error.to_string()))?;
    let decision = list.decide(subject, &facts);
    Ok(PolicyAnswer {
        is_allowed: decision.is_ok(),
        gateway_app_id: Some(gateway_text(list)),
        reason: Some(decision.err().map(|denial| RpcError::from_user_facing(&denial).message).unwrap_or_default()),
    })
}

/// What the service says about itself.
#[must_use]
pub fn server_info(list: &AllowList) -> PolicyServerInfo {
    PolicyServerInfo { status: "ok".to_owned(), gateway_app_id: gateway_text(list), ..PolicyServerInfo::default() }
}

fn gateway_text(list: &AllowList) -> String {
    list.gateway_app_id().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use std::path::Path;

    use super::*;

    fn list() -> AllowList {
        let text = format!(
            "version = 1\ngateway_app_id = \"{gateway}\"\n[[os_images]]\nhash = \"{os}\"\n[[apps]]\napp_id = \"{app}\"\n\
             compose_hashes = [\"{compose}\"]\nany_device = true\n[kms]\nmr_aggregated = [\"{mr}\"]\nany_device = true\n",
            gateway = "09".repeat(20),
            os = "01".repeat(32),
            app = "02".repeat(20),
            compose = "03".repeat(32),
            mr = "05".repeat(32),
        );
        AllowList::parse(&text, Path::new("allow.toml")).unwrap()
    }

    fn question(compose: &str) -> Vec<u8> {
        let body = format!(
            r#"{{"teeVariant":"dstack-tdx","mrAggregated":"{mr}","osImageHash":"{os}","mrSystem":"{mr}","appId":"0x{app}","composeHash":"{compose}",
            "instanceId":"","deviceId":"{os}","keyProviderInfo":"","tcbStatus":"UpToDate","advisoryIds":[],"unknown":1}}"#,
            mr = "05".repeat(32),
            os = "01".repeat(32),
            app = "02".repeat(20),
        );
        body.into_bytes()
    }

    #[test]
    fn allows_what_is_listed_and_names_the_gateway() {
        for subject in [Subject::App, Subject::Kms] {
            let told = answer(&list(), subject, &question(&"03".repeat(32))).unwrap();

            assert!(told.is_allowed, "{told:?}");
            assert_eq!(told.gateway_app_id, Some("09".repeat(20)));
        }
    }

    #[test]
    fn denies_with_the_reason() {
        let told = answer(&list(), Subject::App, &question(&"04".repeat(32))).unwrap();

        assert!(!told.is_allowed);
        assert!(told.reason.unwrap().contains("is not allowed for app"));
    }

    #[test]
    fn what_is_not_understood_is_denied() {
        for body in [b"".as_slice(), b"{", b"[]", b"\xff", &question("03"), b"{\"appId\":7}"] {
            let (told, cause) = answer(&list(), Subject::App, body).unwrap_err();

            assert!(!told.is_allowed && !cause.is_empty());
        }
    }
}
