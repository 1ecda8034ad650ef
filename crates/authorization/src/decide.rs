//! The policy core: facts against the list, rule by rule. Pure.

use crate::{AllowList, BootFacts, Denial, Subject};

type Check = fn(&AllowList, &BootFacts) -> Result<(), Denial>;

/// What must hold for an app, in the order in which a denial names its reason.
const APP_RULES: &[(&str, Check)] = &[
    ("evidence is of hardware, or simulated evidence is accepted", anchor),
    ("kind of TEE", tee_variant),
    ("TCB status", tcb_status),
    ("advisories", advisories),
    ("OS image", os_image),
    ("moment of the boot", moment),
    ("app and document", app),
    ("machine of the app", app_device),
    ("age of the evidence", age),
];

/// The same for its certificates. Their requests have no nonce: who asks has got keys with fresh evidence before.
const CERTIFICATE_RULES: &[(&str, Check)] = APP_RULES.split_at(APP_RULES.len() - 1).0;

/// What must hold for a KMS.
const KMS_RULES: &[(&str, Check)] = &[
    ("evidence is of hardware, or simulated evidence is accepted", anchor),
    ("kind of TEE", tee_variant),
    ("TCB status", tcb_status),
    ("advisories", advisories),
    ("OS image", os_image),
    ("measurement of the KMS", kms_measurement),
    ("machine of the KMS", kms_device),
    ("age of the evidence", age),
];

fn rules(subject: Subject) -> &'static [(&'static str, Check)] {
    match subject {
        Subject::App => APP_RULES,
        Subject::Certificate => CERTIFICATE_RULES,
        Subject::Kms => KMS_RULES,
    }
}

/// One rule of the list, applied to one boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleOutcome {
    /// What the rule looks at.
    pub rule: &'static str,
    /// Why it denies; none if it is content.
    pub denial: Option<Denial>,
}

impl AllowList {
    /// Whether a boot with these facts may have what `subject` names.
    ///
    /// Errors: the first rule that is not content.
    pub fn decide(&self, subject: Subject, facts: &BootFacts) -> Result<(), Denial> {
        rules(subject).iter().try_for_each(|(_, check)| check(self, facts))
    }

    /// Every rule with its outcome, also behind the one that denies.
    #[must_use]
    pub fn explain(&self, subject: Subject, facts: &BootFacts) -> Vec<RuleOutcome> {
        rules(subject).iter().map(|(rule, check)| RuleOutcome { rule, denial: check(self, facts).err() }).collect()
    }
}

fn anchor(list: &AllowList, facts: &BootFacts) -> Result<(), Denial> {
    facts.check_anchor(list.allow_simulated)
}

fn tee_variant(list: &AllowList, facts: &BootFacts) -> Result<(), Denial> {
    let variant = &facts.tee_variant;
    if list.tee_variants.contains(variant) { Ok(()) } else { Err(Denial::TeeVariant { variant: variant.clone() }) }
}

fn tcb_status(list: &AllowList, facts: &BootFacts) -> Result<(), Denial> {
    let status = &facts.tcb_status;
    if list.tcb_statuses.contains(status) { Ok(()) } else { Err(Denial::TcbStatus { status: status.clone() }) }
}

fn advisories(list: &AllowList, facts: &BootFacts) -> Result<(), Denial> {
    match facts.advisory_ids.iter().find(|id| list.rejected_advisories.contains(*id)) {
        Some(advisory) => Err(Denial::Advisory { advisory: advisory.clone() }),
        None => Ok(()),
    }
}

fn os_image(list: &AllowList, facts: &BootFacts) -> Result<(), Denial> {
    let hash = facts.os_image_hash.ok_or(Denial::OsImageUnknown)?;
    if list.os_images.contains(&hash) { Ok(()) } else { Err(Denial::OsImage { hash }) }
}

fn moment(list: &AllowList, facts: &BootFacts) -> Result<(), Denial> {
    facts.check_app(list.allow_simulated)
}

fn app(list: &AllowList, facts: &BootFacts) -> Result<(), Denial> {
    let (Some(app_id), Some(compose_hash)) = (facts.app_id, facts.compose_hash) else { return Err(Denial::NoApplication) };
    let app = list.apps.get(&app_id).ok_or(Denial::App { app_id })?;
    if app.compose_hashes.contains(&compose_hash) { Ok(()) } else { Err(Denial::ComposeHash { app_id, compose_hash }) }
}

fn app_device(list: &AllowList, facts: &BootFacts) -> Result<(), Denial> {
    let device_id = facts.device_id;
    // An app that is not listed has been denied before, and has no machines.
    let app = facts.app_id.and_then(|app_id| list.apps.get(&app_id));
    if app.is_some_and(|app| app.devices.contains(&device_id)) { Ok(()) } else { Err(Denial::Device { device_id }) }
}

fn kms_measurement(list: &AllowList, facts: &BootFacts) -> Result<(), Denial> {
    let mr_aggregated = facts.mr_aggregated.ok_or(Denial::BootIncomplete)?;
    let is_listed = list.kms.as_ref().is_some_and(|(measurements, _)| measurements.contains(&mr_aggregated));
    if is_listed { Ok(()) } else { Err(Denial::KmsMeasurement { mr_aggregated }) }
}

fn kms_device(list: &AllowList, facts: &BootFacts) -> Result<(), Denial> {
    let device_id = facts.device_id;
    let is_listed = list.kms.as_ref().is_some_and(|(_, devices)| devices.contains(&device_id));
    if is_listed { Ok(()) } else { Err(Denial::Device { device_id }) }
}

fn age(list: &AllowList, facts: &BootFacts) -> Result<(), Denial> {
    let Some(max_seconds) = list.max_evidence_age_seconds else { return Ok(()) };
    match facts.evidence_age_seconds {
        None => Err(Denial::NotFresh),
        Some(seconds) if seconds > max_seconds => Err(Denial::TooOld { seconds, max_seconds }),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
