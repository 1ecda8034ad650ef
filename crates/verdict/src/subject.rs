//! What is to be judged.

pub(crate) use dstack_attestation::sev_snp::SnpEvidence;
use dstack_attestation::{
    Attestation, Endorsements, Envelope, Evidence, Platform, PlatformEvidence, QuoteCollateral, ReportData, gpu::GpuEvidence,
};
use dstack_event_log::{BootLog, Event, RUNTIME_REGISTER, RuntimeEvent};

use crate::{EvidenceCertificate, input::InputError};

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
    /// A TDX quote of Google's cloud with the TPM quote that vouches for it.
    GcpTdx(Box<GcpEvidence>),
    /// A Nitro document.
    Nitro(NitroEvidence),
    /// An SPDM report of an NVIDIA GPU with its chain.
    Gpu(Box<GpuEvidence>),
    /// A CCA token, CBOR.
    Cca(Vec<u8>),
}

/// A TD of Google's cloud: its TPM tells the boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcpEvidence {
    /// The TDX side. Its quote is kept with its padding: the TPM signs the hash of these very bytes.
    pub td: Evidence,
    /// For [`TpmQuote::decode_scale`](dstack_attestation::tpm::TpmQuote::decode_scale).
    pub tpm_quote: Vec<u8>,
    /// Runtime events, which are measured into the TPM as well.
    pub runtime_events: Vec<RuntimeEvent>,
}

/// A Nitro document with what travels beside it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NitroEvidence {
    /// COSE.
    pub document: Vec<u8>,
    /// Runtime events; those of an enclave are measured nowhere.
    pub runtime_events: Vec<RuntimeEvent>,
    /// The `vm_config` text; empty for none.
    pub vm_config: String,
    /// What the sender says the user data is; `None` outside an envelope.
    pub claimed_report_data: Option<ReportData>,
}

impl NitroEvidence {
    /// A document without anything beside it.
    pub(crate) fn bare(document: &[u8]) -> Self {
        Self { document: document.to_vec(), ..Self::default() }
    }
}

/// What a bundle keeps, so that evidence can be judged again without a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// Intel's collateral. Signed, so the file that carries it need not be trusted.
    pub collateral: Option<QuoteCollateral>,
    /// Certificates, DER. Signed as well.
    pub certificates: Vec<Vec<u8>>,
    /// Revocation lists, DER. Signed as well.
    pub revocation_lists: Vec<Vec<u8>>,
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
        if matches!(envelope.evidence, PlatformEvidence::SevSnp { .. }) {
            let evidence = SnpEvidence::try_from(envelope).map_err(|error| InputError::Envelope { reason: error.to_string() })?;
            return Ok(Kind::SevSnp(evidence).into());
        }
        let Envelope { evidence, runtime_events, report_data, config, .. } = envelope;
        let td = |quote, event_log, runtime_events| Evidence::from(Attestation { quote, event_log, runtime_events, report_data, config });
        let kind = match evidence {
            PlatformEvidence::Tdx { quote, event_log } => return Ok(Self::from_td_evidence(td(quote, event_log, runtime_events))),
            PlatformEvidence::GcpTdx { quote, event_log, tpm_quote } => {
                Kind::GcpTdx(Box::new(GcpEvidence { td: td(quote, event_log, runtime_events.clone()), tpm_quote, runtime_events }))
            }
            PlatformEvidence::NitroEnclave { document } | PlatformEvidence::NitroTpm { document } => {
                Kind::Nitro(NitroEvidence { document, runtime_events, vm_config, claimed_report_data: Some(report_data) })
            }
            other => return Err(InputError::Envelope { reason: format!("evidence of platform {} is not implemented", other.kind()) }),
        };
        Ok(kind.into())
    }

    /// The platform that would judge it.
    #[must_use]
    pub fn platform(&self) -> Platform {
        match &self.kind {
            Kind::Td(_) | Kind::GcpTdx(_) => Platform::Tdx,
            Kind::Sgx(_) => Platform::Sgx,
            Kind::SevSnp(_) => Platform::SevSnp,
            Kind::Nitro(_) => Platform::NitroEnclave,
            Kind::Gpu(_) => Platform::NvidiaGpu,
            Kind::Cca(_) => Platform::ArmCca,
        }
    }

    /// Its stable name; `gcp-tdx` for a TD with a TPM of Google's cloud.
    #[must_use]
    pub fn platform_name(&self) -> &'static str {
        if matches!(self.kind, Kind::GcpTdx(_)) { "gcp-tdx" } else { self.platform().name() }
    }

    /// The TDX quote in it, for which Intel's collateral is needed.
    #[must_use]
    pub fn td_quote(&self) -> Option<&[u8]> {
        match &self.kind {
            Kind::Td(evidence) => Some(&evidence.quote),
            Kind::GcpTdx(evidence) => Some(&evidence.td.quote),
            _ => None,
        }
    }

    /// The SGX quote in it, for which Intel's collateral is needed.
    #[must_use]
    pub fn sgx_quote(&self) -> Option<&[u8]> {
        match &self.kind {
            Kind::Sgx(quote) => Some(quote),
            _ => None,
        }
    }

    /// The SNP report in it, if no certificate of the key that signed it is beside it or among `endorsements`.
    #[must_use]
    pub fn snp_report_without_key(&self, endorsements: &Endorsements) -> Option<&[u8]> {
        match &self.kind {
            Kind::SevSnp(evidence) if evidence.certificates.is_empty() && endorsements.certificates.is_empty() => Some(&evidence.report),
            _ => None,
        }
    }

    /// What was saved with it, as papers.
    #[must_use]
    pub fn saved_endorsements(&self) -> Endorsements {
        let Saved { collateral, certificates, revocation_lists, .. } = self.saved.clone();
        Endorsements { collateral, certificates, revocation_lists }
    }

    pub(crate) fn td_mut(&mut self) -> Option<&mut Evidence> {
        match &mut self.kind {
            Kind::Td(evidence) => Some(evidence),
            Kind::GcpTdx(evidence) => Some(&mut evidence.td),
            _ => None,
        }
    }

    /// Replaces the event log by one that came separately.
    ///
    /// Errors: the evidence is not of a TD.
    pub fn set_event_log(&mut self, log: Vec<Event>) -> Result<(), InputError> {
        self.need_td("the event log")?.event_log = log;
        Ok(())
    }

    /// Takes the boot events from the firmware's binary log (CCEL); runtime events stay as they are.
    ///
    /// Errors: malformed, or the evidence is not of a TD.
    pub fn set_ccel(&mut self, ccel: &[u8]) -> Result<(), InputError> {
        let evidence = self.need_td("the CCEL")?;
        let malformed = |error: &dyn std::fmt::Display| InputError::Log { name: "the CCEL", reason: format!("is malformed: {error}") };
        let log = BootLog::parse(ccel).map_err(|error| malformed(&error))?;
        let mut events = log.rtmr_events().map_err(|error| malformed(&error))?;
        events.extend(evidence.event_log.drain(..).filter(|event| event.imr == RUNTIME_REGISTER));
        evidence.event_log = events;
        Ok(())
    }

    fn need_td(&mut self, log: &'static str) -> Result<&mut Evidence, InputError> {
        let name = self.platform_name();
        self.td_mut().ok_or_else(|| InputError::Log { name: log, reason: format!("belongs to TDX evidence, and this is {name}") })
    }
}
