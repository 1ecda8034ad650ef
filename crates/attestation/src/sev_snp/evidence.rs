//! A report as it arrives.

use crate::{Endorsements, Envelope, EnvelopeError, PlatformEvidence, ReportData};

/// An SNP report with what travels beside it. Unverified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnpEvidence {
    /// The report, as signed.
    pub report: Vec<u8>,
    /// Certificates of the key that signed, PEM or DER, in any order; often none.
    pub certificates: Vec<Vec<u8>>,
    /// The document whose hash is HOST_DATA; empty for none.
    pub mr_config: String,
    /// The `vm_config` text, with what it takes to compute the launch measurement; empty for none.
    pub vm_config: String,
    /// What the sender says the report data is; must agree with the report.
    pub claimed_report_data: Option<ReportData>,
    /// Bytes of `app-compose.json`, if the sender shows them; must hash to the compose hash of the document.
    pub app_compose: Option<Vec<u8>>,
}

impl SnpEvidence {
    /// `given` with the certificates that came with the report. They count alike: all are checked up to AMD's root.
    #[must_use]
    pub fn endorsements(&self, given: &Endorsements) -> Endorsements {
        let mut endorsements = given.clone();
        endorsements.certificates.extend(self.certificates.iter().cloned());
        endorsements
    }
}

impl TryFrom<Envelope> for SnpEvidence {
    type Error = EnvelopeError;

    fn try_from(envelope: Envelope) -> Result<Self, EnvelopeError> {
        let vm_config = envelope.vm_config();
        let claimed_report_data = Some(envelope.report_data);
        match envelope.evidence {
            PlatformEvidence::SevSnp { report, certificates, mr_config } => {
                Ok(Self { report, certificates, mr_config, vm_config, claimed_report_data, app_compose: None })
            }
            other => Err(EnvelopeError::NotImplemented { platform: other.kind().to_owned() }),
        }
    }
}
