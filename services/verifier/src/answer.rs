//! From a verdict to the answer on the wire.

use dstack_api::verifier::{AppInfo, BootInfo, CheckLine, KeyProvider, TrustAnchor, VerifyDetails, VerifyResponse};
use dstack_attestation::{MrScope, VerifiedEvidence};
use dstack_manifest::ImageMetadata;
use dstack_verdict::{Mark, Verdict, Word};

/// The word for questions that could not be decided.
pub(crate) const UNDECIDED: &str = "UNDECIDED";

/// The checks of a TDX quote. Other platforms have one named `signature`, which is made after all before it.
const QUOTE_CHECKS: [&str; 3] = ["quote-format", "quote-signature", "td-attributes"];

/// The answer. `image`: what the image's files say, where they were read.
pub(crate) fn respond(verdict: &Verdict, evidence: Option<&VerifiedEvidence>, image: Option<&ImageMetadata>) -> VerifyResponse {
    let mut details = VerifyDetails {
        quote_verified: QUOTE_CHECKS.iter().all(|name| verdict.passed(name)) || verdict.passed("signature"),
        // Under SNP the host's data, signed in the report, stand in the log's place.
        event_log_verified: (verdict.passed("runtime-log") && !failed(verdict, "boot-log") && !failed(verdict, "tpm-runtime-log"))
            || verdict.passed("host-data"),
        os_image_hash_verified: verdict.passed("os-image"),
        tee_variant: tee_variant(&verdict.platform).map(str::to_owned),
        report_data: verdict.claims.get("report_data").map(str::to_owned),
        tcb_status: verdict.tcb_status.clone(),
        advisory_ids: verdict.advisory_ids.clone(),
        ..VerifyDetails::default()
    };
    match evidence {
        Some(evidence) => describe(&mut details, evidence),
        None if verdict.word != Word::NotVerified && verdict.claims.get("mr_aggregated").is_some() => {
            describe_claims(&mut details, verdict)
        }
        None => {}
    }
    if let Some(image) = image.filter(|_| details.os_image_hash_verified) {
        (details.os_image_is_dev, details.os_image_version) = (Some(image.is_dev), Some(image.version.clone()));
    }
    let is_valid =
        verdict.word != Word::NotVerified && details.quote_verified && details.event_log_verified && details.os_image_hash_verified;
    VerifyResponse {
        is_valid,
        details,
        reason: (!is_valid).then(|| reason(verdict)),
        verdict: verdict.word.to_string(),
        checks: verdict.checks.iter().map(check_line).collect(),
        trust_anchors: verdict.trust_anchors.iter().map(trust_anchor).collect(),
        caveats: verdict.caveats.clone(),
        fix: verdict.fix.clone(),
    }
}

/// An answer to a question that could not be decided: nothing is known against the evidence.
pub(crate) fn undecided(mut verdict: Verdict, reason: String, fix: String) -> VerifyResponse {
    let (name, says) = signature_check(&verdict.platform);
    verdict.check(name, Mark::Unknown, says, reason.clone());
    let mut response = respond(&verdict, None, None);
    UNDECIDED.clone_into(&mut response.verdict);
    (response.reason, response.fix) = (Some(reason), fix);
    response
}

/// The check that papers are needed for, by the platform's name.
pub(crate) fn signature_check(platform: &str) -> (&'static str, &'static str) {
    match platform {
        "tdx" | "gcp-tdx" => ("quote-signature", "the quote is signed by a TEE of a trusted vendor"),
        _ => ("signature", "the hardware signed exactly this evidence"),
    }
}

fn describe(details: &mut VerifyDetails, evidence: &VerifiedEvidence) {
    let claims = evidence.claims();
    let provider = claims.key_provider.as_ref();
    let app = AppInfo {
        app_id: claims.app_id.map(|id| id.to_string()).unwrap_or_default(),
        compose_hash: claims.compose_hash.map(|hash| hash.to_string()).unwrap_or_default(),
        instance_id: claims.instance_id.to_string(),
        device_id: hex::encode(evidence.device_id()),
        mr_system: hex::encode(evidence.mr_system(MrScope::Runtime)),
        mr_aggregated: evidence.mr_aggregated(MrScope::Runtime).map(hex::encode).unwrap_or_default(),
        os_image_hash: evidence.os_image_hash().map(|hash| hash.to_string()).unwrap_or_default(),
        key_provider_info: provider.map(|provider| hex::encode(&provider.raw)).unwrap_or_default(),
    };
    details.acpi_tables_verified = evidence.acpi_tables_computed();
    details.tee_variant = Some(evidence.tee_variant().to_owned());
    details.key_provider = provider.map(|provider| KeyProvider { name: provider.name.clone(), id: hex::encode(&provider.id) });
    details.boot_info = Some(BootInfo {
        tee_variant: evidence.tee_variant().to_owned(),
        mr_aggregated: app.mr_aggregated.clone(),
        os_image_hash: app.os_image_hash.clone(),
        mr_system: app.mr_system.clone(),
        app_id: app.app_id.clone(),
        compose_hash: app.compose_hash.clone(),
        instance_id: app.instance_id.clone(),
        device_id: app.device_id.clone(),
        key_provider_info: app.key_provider_info.clone(),
        tcb_status: evidence.tcb_status().to_string(),
        advisory_ids: evidence.advisory_ids().to_vec(),
    });
    details.app_info = Some(app);
}

/// The same of a guest whose evidence is not a [`VerifiedEvidence`], from what its verdict claims.
fn describe_claims(details: &mut VerifyDetails, verdict: &Verdict) {
    let claim = |name: &str| verdict.claims.get(name).unwrap_or_default().to_owned();
    let app = AppInfo {
        app_id: claim("app_id"),
        compose_hash: claim("compose_hash"),
        instance_id: claim("instance_id"),
        device_id: claim("device_id"),
        mr_system: claim("mr_system"),
        mr_aggregated: claim("mr_aggregated"),
        os_image_hash: claim("os_image_hash"),
        key_provider_info: claim("key_provider_info"),
    };
    if verdict.claims.get("key_provider").is_some() {
        details.key_provider = Some(KeyProvider { name: claim("key_provider"), id: claim("key_provider_id") });
    }
    details.boot_info = Some(BootInfo {
        tee_variant: details.tee_variant.clone().unwrap_or_default(),
        mr_aggregated: app.mr_aggregated.clone(),
        os_image_hash: app.os_image_hash.clone(),
        mr_system: app.mr_system.clone(),
        app_id: app.app_id.clone(),
        compose_hash: app.compose_hash.clone(),
        instance_id: app.instance_id.clone(),
        device_id: app.device_id.clone(),
        key_provider_info: app.key_provider_info.clone(),
        tcb_status: verdict.tcb_status.clone().unwrap_or_default(),
        advisory_ids: verdict.advisory_ids.clone(),
    });
    details.app_info = Some(app);
}

/// Why an answer is not valid, although nothing may be wrong.
fn reason(verdict: &Verdict) -> String {
    if verdict.word == Word::NotVerified {
        return verdict.reason.clone();
    }
    let matters = |name: &str| matches!(name, "quote-signature" | "signature" | "runtime-log" | "host-data" | "os-image" | "identity");
    let line = verdict.checks.iter().find(|line| matters(&line.name) && !verdict.passed(&line.name));
    line.map_or_else(|| verdict.reason.clone(), |line| format!("{}: {}", line.name, line.detail))
}

/// The platform's name in policies.
fn tee_variant(platform: &str) -> Option<&'static str> {
    match platform {
        "tdx" => Some("dstack-tdx"),
        "gcp-tdx" => Some("dstack-gcp-tdx"),
        "sev-snp" => Some("dstack-amd-sev-snp"),
        "nitro-enclave" => Some("dstack-nitro-enclave"),
        "aws-nitro-tpm" => Some("dstack-aws-nitro-tpm"),
        _ => None,
    }
}

fn failed(verdict: &Verdict, name: &str) -> bool {
    verdict.checks.iter().any(|line| line.name == name && line.outcome == Mark::Failed)
}

fn check_line(line: &dstack_verdict::CheckLine) -> CheckLine {
    let outcome = match line.outcome {
        Mark::Passed | Mark::Remark => "pass",
        Mark::Unknown => "unknown",
        Mark::Skipped => "skipped",
        Mark::Failed => "fail",
    };
    CheckLine { name: line.name.to_string(), outcome: outcome.to_owned(), detail: line.detail.clone(), says: line.says.to_string() }
}

fn trust_anchor(anchor: &dstack_verdict::Anchor) -> TrustAnchor {
    TrustAnchor { role: anchor.role.to_string(), anchor: anchor.anchor.clone(), origin: anchor.origin.clone() }
}
