//! The verification of an SNP guest: there is no log, so identity is what the host bound to the launch.

use dstack_manifest::ComposeHash;

use crate::{
    Check, Claims, Endorsements, GuestEvidence, ImageRule, ReportData, VerifiedEvidence, Verifier, VerifyError,
    error::Reason,
    sev_snp::{self, LaunchMismatch, SevSnp, SnpEvidence, SnpFields, UnverifiedReport},
    verified::{Guest, SnpGuest},
    verify::{Run, parse_vm_config},
};

impl Verifier {
    /// Verifies evidence of a guest of either platform: [`Verifier::verify`], [`Verifier::verify_snp`].
    ///
    /// Errors: the first check that fails, and the ones that held before.
    pub fn verify_guest(
        &self,
        evidence: &GuestEvidence,
        endorsements: &Endorsements,
        now: u64,
        expected_report_data: Option<&ReportData>,
    ) -> Result<VerifiedEvidence, VerifyError> {
        match evidence {
            GuestEvidence::Td(evidence) => self.verify(evidence, endorsements, now, expected_report_data),
            GuestEvidence::SevSnp(evidence) => self.verify_snp(evidence, endorsements, now, expected_report_data),
        }
    }

    /// Verifies an SNP guest: the report up to AMD's root, the guest's policy, HOST_DATA against the document that names the app, and
    /// MEASUREMENT against the OS image. What the guest says of itself beyond that is signed by nothing and not looked at.
    ///
    /// `endorsements`: certificates of the chip's key that the evidence lacks. `now`: Unix seconds. `expected_report_data`: the challenge;
    /// `None` only where the caller compares [`VerifiedEvidence::report_data`] itself.
    /// Errors: the first check that fails, and the ones that held before.
    pub fn verify_snp(
        &self,
        evidence: &SnpEvidence,
        endorsements: &Endorsements,
        now: u64,
        expected_report_data: Option<&ReportData>,
    ) -> Result<VerifiedEvidence, VerifyError> {
        let mut run = Run::default();
        let endorsements = evidence.endorsements(endorsements);
        let platform = self.check_platform(&mut run, &SevSnp, &evidence.report, &endorsements, now)?;
        let report = UnverifiedReport::parse(&evidence.report);
        let Ok(fields) = report.map(|report| report.fields().clone()) else {
            return Err(run.refuse(Check::QuoteFormat, Reason::Platform { platform: platform.platform() }));
        };
        run.step(
            Check::GuestPolicy,
            sev_snp::check_guest(&fields).map(|()| "no debugging, no migration agent, privilege level 0".to_owned()),
        )?;
        run.step(Check::ReportData, check_report_data(&fields, evidence, expected_report_data))?;
        let document = run.try_step(Check::HostData, sev_snp::check_host_data(&fields, &evidence.mr_config))?;
        run.report.pass(Check::HostData, "HOST_DATA is the hash of the mr_config document");
        let claims = Claims::from_launch(&document);
        if let Some(compose) = &evidence.app_compose {
            let got = ComposeHash::of(compose);
            if got != document.compose_hash {
                return Err(run.refuse(Check::Identity, Reason::AppCompose { got, measured: claims.compose_hash }));
            }
        }
        run.report.pass(Check::Identity, claims.to_string());
        let vm_config = run.try_step(Check::OsImage, parse_vm_config(&evidence.vm_config))?;
        let os_image_hash = self.verify_launch(&mut run, &fields, vm_config.as_ref())?;
        Ok(VerifiedEvidence {
            guest: Guest::SevSnp(Box::new(SnpGuest { fields, document })),
            tcb_status: platform.tcb_status.unwrap_or(crate::TcbStatus::OutOfDate),
            platform,
            claims,
            vm_config,
            os_image_hash,
            report: run.report,
            verified_at: now,
        })
    }

    fn verify_launch(
        &self,
        run: &mut Run,
        fields: &SnpFields,
        config: Option<&dstack_manifest::VmConfig>,
    ) -> Result<Option<dstack_manifest::OsImageHash>, VerifyError> {
        let launch = config.map_or(Err(LaunchMismatch::NoImageHash), |config| sev_snp::check_launch(fields, config));
        let proof = match launch {
            Ok(proof) => proof,
            Err(mismatch) if self.policy.image == ImageRule::WherePossible && mismatch.lacks_material() => {
                run.report.skip(Check::OsImage, mismatch.to_string());
                return Ok(None);
            }
            Err(mismatch) => return Err(run.refuse(Check::OsImage, mismatch.into())),
        };
        let os_image_hash = proof.os_image_hash;
        if self.policy.allowed_images.as_ref().is_some_and(|allowed| !allowed.contains(&os_image_hash)) {
            return Err(run.refuse(Check::OsImage, Reason::ImageNotAllowed { os_image_hash }));
        }
        run.report.pass(Check::OsImage, format!("os image {os_image_hash} with {} vCPUs", proof.shape.vcpus));
        Ok(Some(os_image_hash))
    }
}

fn check_report_data(fields: &SnpFields, evidence: &SnpEvidence, expected: Option<&ReportData>) -> Result<String, Reason> {
    let reported = &fields.report_data;
    if expected.is_some_and(|expected| expected != reported) || evidence.claimed_report_data.is_some_and(|claimed| claimed != *reported) {
        return Err(Reason::ReportData);
    }
    Ok(if expected.is_some() { "equals the expected value" } else { "left to the caller" }.to_owned())
}
