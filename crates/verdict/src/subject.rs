//! What is to be judged.

use dstack_attestation::{Attestation, Envelope, Evidence, Platform, PlatformEvidence, QuoteCollateral, ReportData, gpu::GpuEvidence};
use dstack_event_log::{BootLog, Event, RUNTIME_REGISTER};

use crate::{EvidenceCertificate, encoding::parse_certificates, input::InputError};

/// Evidence with whatever came in the same file. Nothing in it is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The evidence itself.
    pub kind: Kind,
    /// The certificate it came in, whose key it must bind.
    pub certificate: Option<EvidenceCertificate>,
    /// What was saved with it.
    pub saved: Saved,
}

/// Evidence by kind.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A TDX quote, with or without log, configuration and document.
    Td(Box<Evidence>),
    /// An SGX quote.
    Sgx(Vec<u8>),
    /// An SNP report.
    SevSnp(SnpEvidence),
    /// A Nitro document, COSE.
    Nitro(Vec<u8>),
    /// An SPDM report of an NVIDIA GPU with its chain.
    Gpu(Box<GpuEvidence>),
    /// A CCA token, CBOR.
    Cca(Vec<u8>),
}

/// An SNP report with what travels beside it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnpEvidence {
    /// The report, as signed.
    pub report: Vec<u8>,
    /// Certificates, DER, in any order.
    pub certificates: Vec<Vec<u8>>,
    /// The document whose hash is HOST_DATA; empty for none.
    pub mr_config: String,
    /// The `vm_config` text, with what it takes to compute the launch measurement; empty for none.
    pub vm_config: String,
    /// What the sender says the report data is; must agree with the report.
    pub claimed_report_data: Option<ReportData>,
}

/// What a bundle keeps, so that evidence can be judged again without a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// Intel's collateral. Signed, so the file that carries it need not be trusted.
    pub collateral: Option<QuoteCollateral>,
    /// Certificates, DER. Signed as well.
    pub certificates: Vec<Vec<u8>>,
    /// The challenge that was sent when the evidence was made. Says nothing to whoever did not send it.
    pub nonce: Option<Vec<u8>>,
    /// Where it came from.
    pub source: Option<String>,
}

impl From<Kind> for Subject {
    fn from(kind: Kind) -> Self {
        Self { kind, certificate: None, saved: Saved::default() }
    }
}

impl Subject {
    /// A quote without anything beside it.
    #[must_use]
    pub fn from_td_quote(quote: Vec<u8>) -> Self {
        Self::from_td_evidence(Self::td_evidence(quote))
    }

    pub(crate) fn from_td_evidence(evidence: Evidence) -> Self {
        Kind::Td(Box::new(evidence)).into()
    }

    pub(crate) fn td_evidence(quote: Vec<u8>) -> Evidence {
        Evidence { quote, event_log: Vec::new(), vm_config: String::new(), report_data: None, app_compose: None }
    }

    /// Opens an envelope of either version.
    pub(crate) fn from_envelope(bytes: &[u8]) -> Result<Self, InputError> {
        let envelope = Envelope::decode(bytes).map_err(|error| InputError::Envelope { reason: error.to_string() })?;
        let vm_config = envelope.vm_config();
        let Envelope { evidence, runtime_events, report_data, config, .. } = envelope;
        let kind = match evidence {
            PlatformEvidence::Tdx { quote, event_log } => {
                return Ok(Self::from_td_evidence(Attestation { quote, event_log, runtime_events, report_data, config }.into()));
            }
            PlatformEvidence::SevSnp { report, certificates, mr_config } => {
                let certificates = certificates.iter().flat_map(|one| parse_certificates(one).unwrap_or_default()).collect();
                Kind::SevSnp(SnpEvidence { report, certificates, mr_config, vm_config, claimed_report_data: Some(report_data) })
            }
            PlatformEvidence::NitroEnclave { document } | PlatformEvidence::NitroTpm { document } => Kind::Nitro(document),
            other => return Err(InputError::Envelope { reason: format!("evidence of platform {} is not implemented", other.kind()) }),
        };
        Ok(kind.into())
    }

    /// The platform that would judge it.
    #[must_use]
    pub fn platform(&self) -> Platform {
        match &self.kind {
            Kind::Td(_) => Platform::Tdx,
            Kind::Sgx(_) => Platform::Sgx,
            Kind::SevSnp(_) => Platform::SevSnp,
            Kind::Nitro(_) => Platform::NitroEnclave,
            Kind::Gpu(_) => Platform::NvidiaGpu,
            Kind::Cca(_) => Platform::ArmCca,
        }
    }

    /// Its stable name.
    #[must_use]
    pub fn platform_name(&self) -> &'static str {
        self.platform().name()
    }

    /// Replaces the event log by one that came separately.
    ///
    /// Errors: the evidence is not of a TD.
    pub fn set_event_log(&mut self, log: Vec<Event>) -> Result<(), InputError> {
        self.td_mut("an event log")?.event_log = log;
        Ok(())
    }

    /// Takes the boot events from the firmware's binary log (CCEL); runtime events stay as they are.
    ///
    /// Errors: malformed, or the evidence is not of a TD.
    pub fn set_ccel(&mut self, ccel: &[u8]) -> Result<(), InputError> {
        let evidence = self.td_mut("a CCEL")?;
        let malformed = |error: &dyn std::fmt::Display| InputError::Document { reason: format!("the CCEL is malformed: {error}") };
        let log = BootLog::parse(ccel).map_err(|error| malformed(&error))?;
        let mut events = log.rtmr_events().map_err(|error| malformed(&error))?;
        events.extend(evidence.event_log.drain(..).filter(|event| event.imr == RUNTIME_REGISTER));
        evidence.event_log = events;
        Ok(())
    }

    fn td_mut(&mut self, what: &str) -> Result<&mut Evidence, InputError> {
        let name = self.platform_name();
        match &mut self.kind {
            Kind::Td(evidence) => Ok(evidence),
            _ => Err(InputError::Document { reason: format!("{what} belongs to TDX evidence, and this is {name}") }),
        }
    }
}
