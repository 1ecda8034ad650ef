//! A TD of Google's cloud: the TDX quote says whose machine it is and what the guest measured, the cloud's TPM what was booted.
//!
//! The TPM signs the hash of the TDX quote, so both are of one machine. MRTD and RTMR0 to RTMR2 name no image: Google's firmware is not
//! public. PCR 0, 2 and 14 stand for firmware, image and runtime events.

use dstack_attestation::{
    Context, ImageRule, Platform, Policy, VerifiedEvidence, Verifier, gcp_uki_authenticode,
    tpm::{Tpm, TpmQuote, VerifiedTpmQuote, gcp},
};
use dstack_manifest::OsImageHash;

use crate::{
    Mark, Question, Subject, Verdict, Word,
    guest::{self, CloudConfig, Image},
    hardware::{fix, says, show_links},
    judge::{anchor_of, is_simulated},
    subject::GcpEvidence,
    td,
};

const IMAGE: &str = "the unified kernel that booted is that of an OS image";

pub(crate) fn judge(verdict: Verdict, evidence: &GcpEvidence, subject: &Subject, question: &Question) -> Verdict {
    // The policy's demands of images are for the TPM to meet.
    let policy = Policy { image: ImageRule::WherePossible, allowed_images: None, ..question.policy.clone() };
    let verifier = Verifier::new(question.anchors.clone(), policy);
    let expected = td::expected_report_data(subject, question);
    let verified = match verifier.verify(&evidence.td, &question.endorsements, question.now, expected.as_ref()) {
        Ok(verified) => verified,
        Err(error) => return td::refuse(verdict, &evidence.td.quote, question, &error),
    };
    let mut verdict = td::describe(verdict, &evidence.td, subject, question, &verified);
    let Some(tpm) = verify_tpm(&mut verdict, evidence, question) else {
        return td::conclude(verdict, &evidence.td, question, &verified, None);
    };
    let image = check_boot(&mut verdict, evidence, question, &tpm, &verified);
    let mut verdict = td::conclude(verdict, &evidence.td, question, &verified, image.as_ref());
    if is_simulated(tpm.platform().anchor()) && verdict.word != Word::NotVerified {
        verdict.word = Word::Simulated;
    }
    verdict
}

/// Whether a cloud's TPM made the quote.
fn verify_tpm(verdict: &mut Verdict, evidence: &GcpEvidence, question: &Question) -> Option<VerifiedTpmQuote> {
    let mut refuse = |link: &str, says, fault, detail: String| {
        verdict.check(format!("tpm-{link}"), Mark::Failed, says, detail);
        fix(fault).clone_into(&mut verdict.fix);
    };
    let quote = TpmQuote::decode_scale(&mut evidence.tpm_quote.as_slice());
    let context = Context { anchors: &question.anchors, endorsements: &question.endorsements, now: question.now };
    let format = dstack_attestation::Link::Format;
    let verified = match quote {
        Ok(quote) => Tpm.verify_quote(&quote, &context),
        Err(error) => {
            refuse(format.name(), says(format, Platform::Tpm), dstack_attestation::Fault::Malformed, error.to_string());
            return None;
        }
    };
    let tpm = match verified {
        Ok(tpm) => tpm,
        Err(refusal) => {
            let detail = format!("{} ({})", refusal.fault, refusal.detail);
            refuse(refusal.link.name(), says(refusal.link, Platform::Tpm), refusal.fault, detail);
            return None;
        }
    };
    let platform = tpm.platform();
    // PCR 14 has no part in the boot log; the runtime events are compared with it below.
    show_links(verdict, "tpm-", platform, |missed| missed.link != dstack_attestation::Link::EventLog);
    for register in platform.registers() {
        verdict.claims.push_bytes(register.name.clone(), &register.value);
    }
    verdict.valid_until = verdict.valid_until.into_iter().chain(platform.valid_until()).min();
    verdict.trust_anchors.push(anchor_of("cloud's TPM", platform.anchor(), question));
    Some(tpm)
}

/// What the TPM tells. Returns the image that is proven.
fn check_boot(
    verdict: &mut Verdict,
    evidence: &GcpEvidence,
    question: &Question,
    tpm: &VerifiedTpmQuote,
    verified: &VerifiedEvidence,
) -> Option<OsImageHash> {
    let mut line = |name: &'static str, says: &'static str, result: Result<(), gcp::GcpFault>, found: String| match result {
        Ok(()) => verdict.check(name, Mark::Passed, says, found),
        Err(fault) => verdict.check(name, Mark::Failed, says, fault.to_string()),
    };
    let bound = gcp::check_quote(tpm, &evidence.td.quote);
    line("tpm-binding", "the TPM and the VM are of one machine", bound, "the TPM signed the hash of the TDX quote".to_owned());
    let firmware = gcp::check_firmware(tpm);
    line("tpm-firmware", "the cloud's own firmware booted the VM", firmware, "PCR 0 is that of Google's firmware for TDs".to_owned());
    let events = gcp::check_events(tpm, &evidence.runtime_events);
    let found = format!("{} runtime events replay to PCR 14", evidence.runtime_events.len());
    line("tpm-runtime-log", "the log of the guest matches what the TPM recorded", events, found);
    let image = guest::show_image(verdict, question, IMAGE, image_of(tpm, &evidence.td.vm_config));
    let claims = verified.claims();
    guest::check_image_event(verdict, question, claims.measured_os_image_hash, image);
    if let Ok(boot) = gcp::registers(tpm) {
        let provider = claims.key_provider.as_ref().map(|provider| provider.raw.as_slice());
        verdict.claims.push_bytes("key_provider_info", provider.unwrap_or_default());
        verdict.claims.push_bytes("mr_aggregated", &boot.mr_aggregated());
        if let Some(hash) = image {
            verdict.claims.push_bytes("mr_system", &gcp::GcpBoot::mr_system(hash.as_bytes(), provider));
        }
    }
    image
}

fn image_of(tpm: &VerifiedTpmQuote, vm_config: &str) -> Image {
    let config = CloudConfig::parse(vm_config);
    let Some(hash) = config.os_image_hash else { return Image::Unknown("vm_config names no OS image".to_owned()) };
    let Some(document) = &config.gcp_measurement else {
        return Image::Unknown(format!("vm_config carries no measurement document for Google's cloud of os image {hash}"));
    };
    let checked = gcp_uki_authenticode(document, &hash).map_err(|error| error.to_string());
    match checked.and_then(|uki| gcp::check_image(tpm, &uki).map_err(|fault| fault.to_string())) {
        Ok(()) => Image::Proven(hash, format!("os image {hash}, by the third event of PCR 2")),
        Err(why) => Image::Other(why),
    }
}
