//! What an appraisal demands beyond what is always demanded.

use std::collections::BTreeMap;

pub use dcap_qvl::TcbStatus;
use dstack_manifest::OsImageHash;
use sha2::{Digest as _, Sha256};

use crate::{
    Check, CheckReport, Platform, VerifiedPlatform, VerifyError,
    error::Reason,
    tdx::{self, TdRules},
};

/// Evidence dated at most so far ahead of our clock is not from the future.
const CLOCK_SKEW_SECONDS: u64 = 300;

/// Whether the boot registers must be those of a known OS image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ImageRule {
    /// The configuration must name an image, and MRTD and RTMR0 to RTMR2 must be the ones it produces.
    #[default]
    Required,
    /// Checked where the configuration allows it, and reported; a configuration that names an image wrongly still fails.
    WherePossible,
}

/// What to think of a guest that its host can look into.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DebugRule {
    /// Refused.
    #[default]
    Refused,
    /// Reported on platforms other than Intel's: genuine evidence of nothing. TDX and SGX debug evidence is refused all the same.
    Reported,
}

/// Who must have signed the TDX module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ModuleRule {
    /// Intel: MRSIGNERSEAM is zero.
    #[default]
    Intel,
    /// Whoever the signed TCB information names; differs from Intel only under a root that is not Intel's.
    Endorsed,
}

/// Demands of a verifier. The default demands an OS image and accepts every TCB status except `Revoked`, which is never accepted.
///
/// Always demanded, whatever the policy: genuine signatures, unexpired collateral, no TDX or SGX debug mode, no migration,
/// `SEPT_VE_DISABLE`, the TDX module that the TCB information names, a log that replays, MRCONFIGID in agreement with the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// OS image.
    pub image: ImageRule,
    /// OS images that are accepted; `None` leaves the judgement to the reader. Needs [`ImageRule::Required`] to be of use.
    pub allowed_images: Option<Vec<OsImageHash>>,
    /// Accept ACPI tables that the log names and that are of no machine whose tables can be computed (the guest's kernel runs code from
    /// them). [`VerifiedEvidence::acpi_tables_computed`](crate::VerifiedEvidence::acpi_tables_computed) tells.
    pub accept_unchecked_acpi: bool,
    /// Platforms that are accepted; `None` accepts all.
    pub platforms: Option<Vec<Platform>>,
    /// Machines that are accepted, each by its raw hardware id (PPID, CHIP_ID, module id) or the SHA-256 of that; `None` accepts all.
    pub machines: Option<Vec<Vec<u8>>>,
    /// Accepted TCB statuses; `None` leaves the judgement to the reader of the claims.
    pub accepted_tcb: Option<Vec<TcbStatus>>,
    /// Accepted TCB statuses of single platforms, in place of `accepted_tcb`.
    pub accepted_tcb_of: BTreeMap<Platform, Vec<TcbStatus>>,
    /// Advisories that must not apply.
    pub rejected_advisories: Vec<String>,
    /// Advisories that may apply; any other is refused. `None` accepts all that are not rejected.
    pub accepted_advisories: Option<Vec<String>>,
    /// Lowest edition of the vendor's TCB papers, where they are numbered.
    pub minimum_tcb_evaluation_number: Option<u32>,
    /// Largest age of the vendor's papers in seconds, however long they are valid: TCB information and identity of the quoting enclave
    /// (TDX, SGX), revocation lists (others). Refused where none of them is there, since the age is not known then.
    pub max_collateral_age: Option<u64>,
    /// Largest age of evidence that carries a date, in seconds. Other evidence is as fresh as the challenge it answers.
    pub max_evidence_age: Option<u64>,
    /// Debug mode.
    pub debug: DebugRule,
    /// Signer of the TDX module.
    pub mr_signer_seam: ModuleRule,
    /// Service TDs that may be bound to a TD, by MRSERVICETD.
    pub service_tds: Vec<[u8; 48]>,
}

impl Policy {
    /// Demands that hold for release of secrets: an OS image and an up-to-date platform.
    #[must_use]
    pub fn strict() -> Self {
        Self { image: ImageRule::Required, accepted_tcb: Some(vec![TcbStatus::UpToDate]), ..Self::default() }
    }

    /// Everything is reported, only what is always demanded is refused.
    #[must_use]
    pub fn report_only() -> Self {
        Self {
            image: ImageRule::WherePossible,
            accept_unchecked_acpi: true,
            debug: DebugRule::Reported,
            mr_signer_seam: ModuleRule::Endorsed,
            ..Self::default()
        }
    }

    /// Appraises genuine evidence of any platform: debug mode, platform, machine, TCB, papers and age.
    ///
    /// `now`: Unix seconds. Returns the checks made. Report data, event logs and images are not part of this.
    /// Errors: the first demand that is not met, with the ones before it.
    pub fn appraise(&self, evidence: &VerifiedPlatform, now: u64) -> Result<CheckReport, VerifyError> {
        let mut report = CheckReport::default();
        match self.appraise_into(&mut report, evidence, now) {
            Ok(()) => Ok(report),
            Err((check, reason)) => {
                let anchor = Some(evidence.anchor().clone());
                Err(VerifyError { check, reason, report: Box::new(report), anchor })
            }
        }
    }

    pub(crate) fn appraise_into(
        &self,
        report: &mut CheckReport,
        evidence: &VerifiedPlatform,
        now: u64,
    ) -> Result<(), (Check, Box<Reason>)> {
        match &evidence.td {
            Some(td) => {
                let rules = TdRules { service_tds: &self.service_tds, intel_module: self.mr_signer_seam == ModuleRule::Intel };
                tdx::check_attributes(&td.fields, &rules).map_err(|fault| (Check::TdAttributes, Box::new(fault.into())))?;
                report.pass(Check::TdAttributes, "no debug, no migration, no service TD that is not accepted");
            }
            None => self.check_debug(report, evidence).map_err(|reason| (Check::Debug, Box::new(reason)))?,
        }
        if let Some(found) = self.check_platform(evidence).map_err(|reason| (Check::Platform, Box::new(reason)))? {
            report.pass(Check::Platform, found);
        }
        let found = self.check_tcb(evidence).map_err(|reason| (Check::TcbPolicy, Box::new(reason)))?;
        report.pass(Check::TcbPolicy, found);
        self.check_age(report, evidence, now).map_err(|reason| (Check::Freshness, Box::new(reason)))
    }

    fn check_debug(&self, report: &mut CheckReport, evidence: &VerifiedPlatform) -> Result<(), Reason> {
        let intel = matches!(evidence.platform(), Platform::Tdx | Platform::Sgx);
        match evidence.debug() {
            Some(true) if intel || self.debug == DebugRule::Refused => return Err(Reason::Debug),
            Some(true) => report.skip(Check::Debug, "the host can look inside: the evidence is genuine and proves nothing about secrecy"),
            Some(false) => report.pass(Check::Debug, "the host cannot look inside"),
            None => report.skip(Check::Debug, format!("{} evidence does not say", evidence.platform())),
        }
        Ok(())
    }

    fn check_platform(&self, evidence: &VerifiedPlatform) -> Result<Option<String>, Reason> {
        let platform = evidence.platform();
        if self.platforms.as_ref().is_some_and(|accepted| !accepted.contains(&platform)) {
            return Err(Reason::Platform { platform });
        }
        let Some(machines) = &self.machines else {
            return Ok(self.platforms.as_ref().map(|_| platform.to_string()));
        };
        let id = evidence.hardware_id().ok_or(Reason::Machine { id: None })?;
        let digest: [u8; 32] = Sha256::digest(id).into();
        if machines.iter().any(|machine| machine == id || *machine == digest) {
            return Ok(Some(format!("{platform}, machine {}", hex::encode(digest))));
        }
        Err(Reason::Machine { id: Some(hex::encode(digest)) })
    }

    fn check_tcb(&self, evidence: &VerifiedPlatform) -> Result<String, Reason> {
        let accepted = self.accepted_tcb_of.get(&evidence.platform()).or(self.accepted_tcb.as_ref());
        let text = match (evidence.tcb_status(), accepted) {
            (Some(status), Some(accepted)) if !accepted.contains(&status) => return Err(Reason::TcbStatus { status }),
            (None, Some(_)) => return Err(Reason::NoTcbStatus { platform: evidence.platform() }),
            (Some(status), _) => status.to_string(),
            (None, None) => "the vendor gives no status".to_owned(),
        };
        let advisories = evidence.advisory_ids();
        let names = |list: &[String], advisory: &String| list.iter().any(|listed| listed.eq_ignore_ascii_case(advisory));
        let refused = advisories.iter().find(|advisory| {
            names(&self.rejected_advisories, advisory) || self.accepted_advisories.as_ref().is_some_and(|list| !names(list, advisory))
        });
        if let Some(advisory) = refused {
            return Err(Reason::Advisory { advisory: advisory.clone() });
        }
        if let (Some(minimum), Some(number)) = (self.minimum_tcb_evaluation_number, evidence.tcb_evaluation_data_number())
            && number < minimum
        {
            return Err(Reason::TcbEvaluationNumber { number, minimum });
        }
        Ok(if advisories.is_empty() { text } else { format!("{text}, advisories {}", advisories.join(", ")) })
    }

    fn check_age(&self, report: &mut CheckReport, evidence: &VerifiedPlatform, now: u64) -> Result<(), Reason> {
        if let Some(maximum) = self.max_collateral_age {
            let issued_at = evidence.endorsed_at().ok_or(Reason::CollateralUndated { platform: evidence.platform() })?;
            let age = now.saturating_sub(issued_at);
            if age > maximum {
                return Err(Reason::CollateralAge { age, maximum });
            }
            report.pass(Check::Freshness, format!("the vendor's papers are {age} s old"));
        }
        let Some(maximum) = self.max_evidence_age else { return Ok(()) };
        match evidence.issued_at() {
            None => report.skip(Check::Freshness, "the evidence carries no date: it is as fresh as the challenge it answers"),
            Some(issued_at) if issued_at > now.saturating_add(CLOCK_SKEW_SECONDS) => {
                return Err(Reason::EvidenceFromFuture { ahead: issued_at - now });
            }
            Some(issued_at) => {
                let age = now.saturating_sub(issued_at);
                if age > maximum {
                    return Err(Reason::EvidenceAge { age, maximum });
                }
                report.pass(Check::Freshness, format!("the evidence is {age} s old"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
