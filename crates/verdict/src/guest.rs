//! What the guests of all platforms have in common: an OS image that something proves, and an identity that something covers.

use dstack_attestation::ImageRule;
use dstack_manifest::{MeasurementDocument, OsImageHash};
use serde::Deserialize;

use crate::{Claims, Mark, Question, Verdict};

/// What a `vm_config` says about images for clouds.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct CloudConfig {
    /// The image, by its own word.
    pub(crate) os_image_hash: Option<OsImageHash>,
    /// What it measures to on Google's cloud.
    pub(crate) gcp_measurement: Option<MeasurementDocument>,
    /// What it measures to on AWS.
    pub(crate) aws_measurement: Option<MeasurementDocument>,
}

impl CloudConfig {
    /// `vm_config`: untrusted. One that cannot be read says nothing.
    pub(crate) fn parse(vm_config: &str) -> Self {
        serde_json::from_str(vm_config).unwrap_or_default()
    }
}

/// What evidence shows about the OS image.
pub(crate) enum Image {
    /// It is this one; found how.
    Proven(OsImageHash, String),
    /// There is nothing to compare with; why.
    Unknown(String),
    /// It is not the one that is named, or not named as it must be; why.
    Other(String),
}

/// The line of the OS image, under the policy. `says`: what an image is on the platform.
///
/// Returns the image that is proven, whether the policy allows it or not.
pub(crate) fn show_image(verdict: &mut Verdict, question: &Question, says: &'static str, image: Image) -> Option<OsImageHash> {
    const NAME: &str = "os-image";
    let allowed = question.policy.allowed_images.as_ref();
    let is_demanded = question.policy.image == ImageRule::Required || allowed.is_some();
    match image {
        Image::Proven(hash, _) if allowed.is_some_and(|allowed| !allowed.contains(&hash)) => {
            verdict.check(NAME, Mark::Failed, says, format!("os image {hash} is not one that the policy allows"));
            Some(hash)
        }
        Image::Proven(hash, how) => {
            verdict.check(NAME, Mark::Passed, says, how);
            verdict.identity.os_image_hash = Some(hash);
            verdict.claims.push("os_image_hash", hash.to_string());
            Some(hash)
        }
        Image::Unknown(why) if !is_demanded => {
            verdict.caveats.push(format!("Not checked that {says}: {why}."));
            verdict.check(NAME, Mark::Unknown, says, why);
            None
        }
        Image::Unknown(why) | Image::Other(why) => {
            verdict.check(NAME, Mark::Failed, says, why);
            None
        }
    }
}

/// The image that the guest measured against the one that is proven.
pub(crate) fn check_image_event(verdict: &mut Verdict, question: &Question, measured: Option<OsImageHash>, proven: Option<OsImageHash>) {
    let (Some(measured), Some(proven)) = (measured, proven) else { return };
    let (outcome, detail) = if measured == proven {
        (Mark::Passed, "equals the proven image".to_owned())
    } else {
        let outcome = if question.policy.image == ImageRule::Required { Mark::Failed } else { Mark::Skipped };
        (outcome, format!("the guest measured os image {measured}, the registers are those of {proven}"))
    };
    verdict.check("os-image-event", outcome, "the guest measured that same OS image", detail);
}

/// What an envelope says the report data is, against what is signed.
pub(crate) fn check_claimed(verdict: &mut Verdict, claimed: Option<&[u8]>, signed: Option<&[u8]>) {
    const SAYS: &str = "the evidence carries the data that its sender says";
    match claimed {
        Some(claimed) if Some(claimed) == signed => verdict.check("claimed-report-data", Mark::Passed, SAYS, "equals what is signed"),
        Some(_) => verdict.check("claimed-report-data", Mark::Failed, SAYS, "the signed data is not the one in the envelope"),
        None => {}
    }
}

/// Who the VM is, as claims.
pub(crate) fn measured_claims(claims: &mut Claims, measured: &dstack_attestation::Claims) {
    if let Some(id) = measured.app_id {
        claims.push("app_id", id.to_string());
    }
    if let Some(hash) = measured.compose_hash {
        claims.push("compose_hash", hash.to_string());
    }
    claims.push("instance_id", measured.instance_id.to_string());
    if let Some(provider) = &measured.key_provider {
        claims.push("key_provider", provider.name.clone());
        claims.push_bytes("key_provider_id", &provider.id);
    }
}
