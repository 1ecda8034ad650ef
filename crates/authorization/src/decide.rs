//! The policy core: facts against the list. Pure.

use crate::{AllowList, BootFacts, Denial};

impl AllowList {
    /// Whether a boot with these facts may have its app's keys.
    ///
    /// The order is fixed: evidence kind, platform, OS image, moment of the boot, app, document, machine.
    ///
    /// Errors: the first reason that applies.
    pub fn decide_app(&self, facts: &BootFacts) -> Result<(), Denial> {
        self.decide_platform(facts)?;
        let (Some(app_id), Some(compose_hash)) = (facts.app_id, facts.compose_hash) else { return Err(Denial::NoApplication) };
        if !facts.is_identity_complete {
            return Err(Denial::BootIncomplete);
        }
        if facts.is_after_boot {
            return Err(Denial::AfterBoot);
        }
        let app = self.apps.get(&app_id).ok_or(Denial::App { app_id })?;
        if !app.compose_hashes.contains(&compose_hash) {
            return Err(Denial::ComposeHash { app_id, compose_hash });
        }
        if !app.devices.contains(&facts.device_id) {
            return Err(Denial::Device { device_id: facts.device_id });
        }
        Ok(())
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
        Ok(())
    }

    fn decide_platform(&self, facts: &BootFacts) -> Result<(), Denial> {
        if facts.is_simulated && !self.allow_simulated {
            return Err(Denial::Simulated);
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
