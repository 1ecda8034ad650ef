//! AWS: what a document says about a dstack enclave, or about an instance with NitroTPM.

use dstack_attestation::{
    aws_boot_pcr_digest,
    nitro::{self, DocumentKind, VerifiedDocument},
};
use dstack_manifest::OsImageHash;

use crate::{
    Anchor, Mark, Question, Verdict,
    guest::{self, CloudConfig, Image},
    platforms::expected_identity_is_unknown,
    subject::NitroEvidence,
    td,
};

/// `evidence`: of an envelope, so of dstack.
pub(crate) fn appraise(verdict: &mut Verdict, evidence: &NitroEvidence, question: &Question, verified: &VerifiedDocument) {
    let document = verified.document();
    let claimed = evidence.claimed_report_data.as_ref().map(<[u8; 64]>::as_slice);
    guest::check_claimed(verdict, claimed, document.user_data.as_deref());
    verdict.claims.push_bytes("device_id", &nitro::device_id(verified));
    match document.kind {
        DocumentKind::Enclave => enclave(verdict, evidence, question, verified),
        DocumentKind::NitroTpm => instance(verdict, evidence, question, verified),
    }
}

/// The image of an enclave is all there is: no register grows with the application.
fn enclave(verdict: &mut Verdict, evidence: &NitroEvidence, question: &Question, verified: &VerifiedDocument) {
    const IMAGE: &str = "the enclave runs an OS image";
    let named = CloudConfig::parse(&evidence.vm_config).os_image_hash;
    let image = match nitro::enclave_digest(verified).map(OsImageHash::new) {
        _ if verified.document().is_debug() => Image::Unknown("a debug enclave has no measurements".to_owned()),
        None => Image::Unknown("the document lacks one of PCR 0, 1 and 2".to_owned()),
        Some(hash) if named.is_some_and(|named| named != hash) => {
            Image::Other(format!("PCR 0, 1 and 2 hash to os image {hash}, vm_config names {}", named.unwrap_or(hash)))
        }
        Some(hash) => Image::Proven(hash, format!("os image {hash} is the SHA-256 of PCR 0, 1 and 2")),
    };
    let proven = guest::show_image(verdict, question, IMAGE, image);
    if let Some(hash) = proven {
        verdict.claims.push_bytes("mr_system", hash.as_bytes());
        verdict.claims.push_bytes("mr_aggregated", hash.as_bytes());
    }
    td::check_image(verdict, question, proven.as_ref());
    let why = "an enclave's events are measured nowhere: nothing but its image says what it runs";
    verdict.check("identity", Mark::Skipped, "the app's identity is measured", why);
    expected_identity_is_unknown(verdict, question);
}

fn instance(verdict: &mut Verdict, evidence: &NitroEvidence, question: &Question, verified: &VerifiedDocument) {
    const IMAGE: &str = "boot loader, kernel and command line are those of an OS image";
    const LOG: &str = "the log of the guest matches what the TPM recorded";
    const IDENTITY: &str = "the app's identity is measured";
    let events = &evidence.runtime_events;
    if let Err(fault) = nitro::check_events(verified, events) {
        return verdict.check("runtime-log", Mark::Failed, LOG, fault.to_string());
    }
    verdict.check("runtime-log", Mark::Passed, LOG, format!("{} runtime events replay to PCR 14", events.len()));
    let claims = match dstack_attestation::Claims::from_runtime_events(events) {
        Ok(claims) => claims,
        Err(error) => return verdict.check("identity", Mark::Failed, IDENTITY, error.to_string()),
    };
    verdict.check("identity", Mark::Passed, IDENTITY, claims.to_string());
    guest::measured_claims(&mut verdict.claims, &claims);
    (verdict.identity.app_id, verdict.identity.compose_hash) = (claims.app_id, claims.compose_hash);
    verdict.identity.instance_id = claims.instance_id.to_string();
    let compose = claims.compose_hash.map_or_else(|| "none".to_owned(), |hash| hash.to_string());
    verdict.trust_anchors.push(Anchor::new("application", format!("compose hash {compose}"), "measured; the document was not shown"));
    let proven = guest::show_image(verdict, question, IMAGE, booted(verified, &CloudConfig::parse(&evidence.vm_config)));
    guest::check_image_event(verdict, question, claims.measured_os_image_hash, proven);
    if let Ok(boot) = nitro::registers(verified) {
        let provider = claims.key_provider.as_ref().map(|provider| provider.raw.as_slice());
        verdict.claims.push_bytes("key_provider_info", provider.unwrap_or_default());
        verdict.claims.push_bytes("mr_system", &boot.mr_system(provider));
        verdict.claims.push_bytes("mr_aggregated", &boot.mr_aggregated());
    }
    td::check_image(verdict, question, proven.as_ref());
    td::check_expected(verdict, question, claims.app_id, claims.compose_hash);
    td::check_kms(verdict, question, claims.key_provider.as_ref(), "key-provider event");
}

fn booted(verified: &VerifiedDocument, config: &CloudConfig) -> Image {
    let Some(hash) = config.os_image_hash else { return Image::Unknown("vm_config names no OS image".to_owned()) };
    let Some(document) = &config.aws_measurement else {
        return Image::Unknown(format!("vm_config carries no measurement document for AWS of os image {hash}"));
    };
    let expected = aws_boot_pcr_digest(document, &hash).map_err(|error| error.to_string());
    match expected.and_then(|expected| nitro::check_boot(verified, &expected).map_err(|fault| fault.to_string())) {
        Ok(()) => Image::Proven(hash, format!("os image {hash}, by PCR 4, 7 and 12")),
        Err(why) => Image::Other(why),
    }
}
