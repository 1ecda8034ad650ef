//! A dstack VM under SEV-SNP: what the host bound to the launch, and what was launched.

use dstack_attestation::{
    KeyProvider,
    sev_snp::{self, SnpEvidence, VerifiedReport},
};
use dstack_manifest::{ComposeHash, KeyProviderKind, MrConfigDocument, VmConfig};

use crate::{
    Anchor, Mark, Question, Verdict, containers,
    guest::{self, Image},
    td,
};

pub(crate) fn appraise(verdict: &mut Verdict, evidence: &SnpEvidence, question: &Question, report: &VerifiedReport) {
    const GUEST: &str = "the VM cannot be debugged or migrated";
    const BOUND: &str = "the host launched the VM for this app";
    let fields = report.fields();
    match sev_snp::check_guest(fields) {
        Ok(()) => verdict.check("guest-policy", Mark::Passed, GUEST, "no debugging, no migration agent, privilege level 0"),
        Err(fault) => verdict.check("guest-policy", Mark::Failed, GUEST, fault.to_string()),
    }
    let claimed = evidence.claimed_report_data.as_ref().map(<[u8; 64]>::as_slice);
    guest::check_claimed(verdict, claimed, Some(&fields.report_data));
    let document = match sev_snp::check_host_data(fields, &evidence.mr_config) {
        Ok(document) => document,
        Err(error) => return verdict.check("host-data", Mark::Failed, BOUND, error.to_string()),
    };
    verdict.check("host-data", Mark::Passed, BOUND, "HOST_DATA is the hash of the mr_config document");
    identify(verdict, &document);
    let device = sev_snp::device_id(fields).map(hex::encode);
    verdict.claims.push("device_id", device.clone().unwrap_or_default());
    verdict.identity.device_id = device;
    verdict.claims.push_bytes("mr_system", &sev_snp::mr_system(fields));
    verdict.claims.push_bytes("mr_aggregated", &sev_snp::mr_aggregated(fields));
    check_document(verdict, evidence, &document);
    let proven =
        guest::show_image(verdict, question, "firmware, kernel, initrd and command line are those of an OS image", image(evidence, report));
    td::check_image(verdict, question, proven.as_ref());
    td::check_expected(verdict, question, document.app_id, Some(document.compose_hash));
    td::check_kms(verdict, question, Some(&provider(&document)), "mr_config document");
}

fn identify(verdict: &mut Verdict, document: &MrConfigDocument) {
    let compose_hash = document.compose_hash;
    verdict.identity.compose_hash = Some(compose_hash);
    verdict.identity.app_id = document.app_id;
    verdict.identity.instance_id = document.instance_id.map(|id| id.to_string()).unwrap_or_default();
    if let Some(id) = document.app_id {
        verdict.claims.push("app_id", id.to_string());
    }
    verdict.claims.push("compose_hash", compose_hash.to_string());
    verdict.claims.push("instance_id", verdict.identity.instance_id.clone());
    verdict.trust_anchors.push(Anchor::new(
        "application",
        format!("compose hash {compose_hash}"),
        "bound by the host at launch (HOST_DATA)",
    ));
}

fn check_document(verdict: &mut Verdict, evidence: &SnpEvidence, document: &MrConfigDocument) {
    const SAYS: &str = "the app's document is the one that the VM was launched for";
    let Some(shown) = &evidence.app_compose else { return };
    if ComposeHash::of(shown) == document.compose_hash {
        verdict.check("app-document", Mark::Passed, SAYS, "SHA-256 of the app-compose.json that was shown equals the bound one");
        containers::check(verdict, shown);
    } else {
        verdict.check("app-document", Mark::Failed, SAYS, format!("the document shown has SHA-256 {}", ComposeHash::of(shown)));
    }
}

/// Where the keys come from, by the document.
fn provider(document: &MrConfigDocument) -> KeyProvider {
    let name = match document.key_provider {
        KeyProviderKind::None => "none",
        KeyProviderKind::Local => "local",
        KeyProviderKind::Kms => "kms",
        KeyProviderKind::Tpm => "tpm",
    };
    KeyProvider { name: name.to_owned(), id: document.key_provider_id.clone(), raw: Vec::new() }
}

/// The OS image that the launch measurement stands for. Memory, devices and ACPI tables are not part of it.
fn image(evidence: &SnpEvidence, report: &VerifiedReport) -> Image {
    let config = serde_json::from_str::<VmConfig>(&evidence.vm_config).unwrap_or_default();
    match sev_snp::check_launch(report.fields(), &config) {
        Ok(proof) => Image::Proven(proof.os_image_hash, format!("os image {} with {} vCPUs", proof.os_image_hash, proof.shape.vcpus)),
        Err(mismatch) if mismatch.lacks_material() => Image::Unknown(mismatch.to_string()),
        Err(mismatch) => Image::Other(mismatch.to_string()),
    }
}
