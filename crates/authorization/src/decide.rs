//! The policy core: facts against the list. Pure.

use crate::{AllowList, BootFacts, Denial};

impl AllowList {
    /// Whether a boot with these facts may have its app's keys.
    ///
    /// The order is fixed: evidence kind, platform, OS image, moment of the boot, app, document, machine, age.
    ///
    /// Errors: the first reason that applies.
    pub fn decide_app(&self, facts: &BootFacts) -> Result<(), Denial> {
        self.decide_platform(facts)?;
        facts.check_app(self.allow_simulated)?;
        let (Some(app_id), Some(compose_hash)) = (facts.app_id, facts.compose_hash) else { return Err(Denial::NoApplication) };
        let app = self.apps.get(&app_id).ok_or(Denial::App { app_id })?;
        if !app.compose_hashes.contains(&compose_hash) {
            return Err(Denial::ComposeHash { app_id, compose_hash });
        }
        if !app.devices.contains(&facts.device_id) {
            return Err(Denial::Device { device_id: facts.device_id });
        }
        self.decide_age(facts)
    }

    /// Whether a boot with these facts may have the root keys.
    ///
    /// Errors: the first reason that applies.
    pub fn decide_kms(&self, facts: &BootFacts) -> Result<(), Denial> {
        self.decide_platform(facts)?;
        let mr_aggregated = facts.mr_aggregated.ok_or(Denial::BootIncomplete)?;
        let Some((measurements, devices)) = &self.kms else { return Err(Denial::KmsMeasurement { mr_aggregated }) };
        if !measurements.contains(&mr_aggregated) {
            return Err(Denial::KmsMeasurement { mr_aggregated });
        }
        if !devices.contains(&facts.device_id) {
            return Err(Denial::Device { device_id: facts.device_id });
        }
        self.decide_age(facts)
    }

    fn decide_age(&self, facts: &BootFacts) -> Result<(), Denial> {
        let Some(max_seconds) = self.max_evidence_age_seconds else { return Ok(()) };
        match facts.evidence_age_seconds {
            None => Err(Denial::NotFresh),
            Some(seconds) if seconds > max_seconds => Err(Denial::TooOld { seconds, max_seconds }),
            Some(_) => Ok(()),
        }
    }

    fn decide_platform(&self, facts: &BootFacts) -> Result<(), Denial> {
        facts.check_anchor(self.allow_simulated)?;
        if !self.tee_variants.contains(&facts.tee_variant) {
            return Err(Denial::TeeVariant { variant: facts.tee_variant.clone() });
        }
        if !self.tcb_statuses.contains(&facts.tcb_status) {
            return Err(Denial::TcbStatus { status: facts.tcb_status.clone() });
        }
        if let Some(advisory) = facts.advisory_ids.iter().find(|id| self.rejected_advisories.contains(*id)) {
            return Err(Denial::Advisory { advisory: advisory.clone() });
        }
        let hash = facts.os_image_hash.ok_or(Denial::OsImageUnknown)?;
        if self.os_images.contains(&hash) { Ok(()) } else { Err(Denial::OsImage { hash }) }
    }
}

#[cfg(test)]
mod tests;
