//! What evidence says was measured. Nothing of it is verified here.

use std::path::Path;

use dstack_attestation::{UnverifiedQuote, sev_snp::UnverifiedReport};
use dstack_event_log::{Event, EventLog};
use dstack_manifest::VmConfig;
use dstack_measurement::{Digest384, acpi::AcpiDigests, boot_event::event_type};
use dstack_verdict::{Kind, Subject};

use super::image::read;
use crate::failure::{Failure, Outcome};

const MAX_EVIDENCE: u64 = 16 << 20;

/// Evidence, taken apart.
#[derive(Debug)]
pub(super) enum Observed {
    /// Of a TD.
    Td(Box<ObservedTd>),
    /// Of an SNP guest.
    Snp {
        /// MEASUREMENT of the report.
        measurement: Digest384,
    },
}

/// A quote's registers and the log beside them.
#[derive(Debug)]
pub(super) struct ObservedTd {
    /// MRTD, RTMR0 to RTMR2.
    pub(super) registers: [Digest384; 4],
    /// Entries of RTMR0 to RTMR2 in the order of the log.
    pub(super) events: Vec<Event>,
    /// For RTMR0 to RTMR2: the entries lead to the quote's value.
    pub(super) replays: [bool; 3],
    /// The VM's configuration, where it can be read.
    pub(super) config: Option<VmConfig>,
}

impl Observed {
    /// Reads evidence of any kind that `dstack verify` takes.
    pub(super) fn read(path: &Path) -> Outcome<Self> {
        let bytes = read(path, MAX_EVIDENCE)?;
        let unreadable = |reason: String| {
            Failure::usage(
                "measure/evidence",
                format!("{}: {reason}", path.display()),
                "give a quote, an answer of GetQuote, a certificate or a bundle",
            )
        };
        let subject = Subject::recognise(&bytes).map_err(|error| unreadable(error.to_string()))?;
        match subject.kind {
            Kind::Td(evidence) => {
                let quote = UnverifiedQuote::parse(&evidence.quote).map_err(|error| unreadable(error.to_string()))?;
                let fields = quote.fields();
                let [rtmr0, rtmr1, rtmr2, _] = fields.rtmr.0;
                let replayed = EventLog::new(evidence.event_log.clone()).ok().map(|log| log.registers().0);
                let replays = replayed.map_or([false; 3], |[r0, r1, r2, _]| [r0 == rtmr0, r1 == rtmr1, r2 == rtmr2]);
                let events = evidence.event_log.into_iter().filter(|event| event.imr < 3).collect();
                let config = serde_json::from_str(&evidence.vm_config).ok().filter(|config: &VmConfig| config.cpu_count > 0);
                Ok(Self::Td(Box::new(ObservedTd { registers: [fields.mrtd, rtmr0, rtmr1, rtmr2], events, replays, config })))
            }
            Kind::SevSnp(evidence) => {
                let report = UnverifiedReport::parse(&evidence.report).map_err(|error| unreadable(error.to_string()))?;
                Ok(Self::Snp { measurement: report.fields().measurement })
            }
            _ => Err(unreadable("only evidence of TDX and SEV-SNP has a launch that is computed here".to_owned())),
        }
    }
}

impl ObservedTd {
    /// Digests of the ACPI files, where the log has all three.
    pub(super) fn acpi(&self) -> Option<AcpiDigests> {
        let marked = self.events.iter().filter(|event| event.imr == 0 && event.event_payload == b"ACPI DATA");
        let digests: Vec<Digest384> = marked.filter_map(digest_of).collect();
        let [loader, rsdp, tables] = digests.try_into().ok()?;
        Some(AcpiDigests { loader, rsdp, tables })
    }

    /// Digest of the SMBIOS structures, where the log has one.
    pub(super) fn smbios(&self) -> Option<Digest384> {
        self.events.iter().find(|event| event.imr == 0 && event.event_type == event_type::EFI_HANDOFF_TABLES).and_then(digest_of)
    }
}

/// What the register is extended with, if the entry has it.
pub(super) fn digest_of(event: &Event) -> Option<Digest384> {
    event.digest.as_slice().try_into().ok()
}
