//! `debug` in a request: what the image and the machine model give, beside what the log has.
//!
//! A diagnosis for people who look for the reason of a mismatch. It is computed from evidence that may not be believed.

use dstack_api::verifier::{AcpiTables, RtmrEvent, RtmrMismatch, VerifyDetails};
use dstack_attestation::{Evidence, UnverifiedQuote, bound_measurement};
use dstack_manifest::VmConfig;
use dstack_measurement::{
    BootEvent, Digest384, VmShape,
    acpi::{self, AcpiDigests, AcpiProfile, InterruptTrigger, PciWindow},
    replay,
    tdx::{self, ImageFiles},
};
use dstack_os_image::fetch::FetchedImage;

/// Most events that are shown of a register.
const MAX_EVENTS: usize = 256;

/// Adds what can be computed; what cannot is left out.
pub(crate) fn add(details: &mut VerifyDetails, evidence: &Evidence, image: Option<&FetchedImage>) {
    let Ok(config) = serde_json::from_str::<VmConfig>(&evidence.vm_config) else { return };
    let Ok(shape) = VmShape::try_from(&config) else { return };
    let computed = tables_of(&config, &shape, evidence);
    details.acpi_tables = computed.as_ref().map(|tables| AcpiTables {
        tables: hex::encode(&tables.tables),
        rsdp: hex::encode(&tables.rsdp),
        loader: hex::encode(&tables.loader),
    });
    let Some(digests) = computed.map(|tables| tables.digests()).or_else(|| logged(evidence)) else { return };
    let Some(expected) = expected_events(&config, &shape, &digests, image) else { return };
    let Ok(quote) = UnverifiedQuote::parse(&evidence.quote) else { return };
    let registers = replay(&expected);
    let mismatches = (0_u32..3).zip(registers).zip(&quote.fields().rtmr.0);
    let mismatches = mismatches.filter(|((_, expected), actual)| expected != *actual);
    details.rtmr_debug = Some(mismatches.map(|((index, value), actual)| mismatch(index, &value, actual, &expected, evidence)).collect());
}

/// The tables of the VM's shape. A TD's depend on how its QEMU sees interrupts: those that the log names, if any are, else the first.
fn tables_of(config: &VmConfig, shape: &VmShape, evidence: &Evidence) -> Option<acpi::AcpiTables> {
    let of_td = |trigger| AcpiProfile::of(shape.qemu_version, trigger, PciWindow::OVMF_46_BITS);
    let profiles = if config.simulated_tee.is_some() {
        vec![AcpiProfile::SOFTWARE_TEE]
    } else {
        [InterruptTrigger::Edge, InterruptTrigger::Level].into_iter().filter_map(|trigger| of_td(trigger).ok()).collect()
    };
    let mut candidates: Vec<_> = profiles.into_iter().filter_map(|profile| acpi::tables(shape, profile).ok()).collect();
    let logged = logged(evidence);
    let named = candidates.iter().position(|tables| Some(tables.digests()) == logged).unwrap_or(0);
    (named < candidates.len()).then(|| candidates.swap_remove(named))
}

/// The digests of loader, RSDP and tables that the log names.
fn logged(evidence: &Evidence) -> Option<AcpiDigests> {
    let marked = evidence.event_log.iter().filter(|event| event.imr == 0 && event.event_payload == b"ACPI DATA");
    let digests: Vec<Digest384> = marked.filter_map(|event| event.digest.as_slice().try_into().ok()).collect();
    let [loader, rsdp, tables] = digests.try_into().ok()?;
    Some(AcpiDigests { loader, rsdp, tables })
}

fn expected_events(config: &VmConfig, shape: &VmShape, acpi: &AcpiDigests, image: Option<&FetchedImage>) -> Option<Vec<BootEvent>> {
    if let Ok((_, document)) = bound_measurement(config) {
        return Some(tdx::expected(&document, shape, acpi).ok()?.events);
    }
    let image = image?;
    let bytes = image.read_measured().ok()?;
    let cmdline = &image.metadata().cmdline;
    let files = ImageFiles { firmware: &bytes.firmware, kernel: &bytes.kernel, initrd: &bytes.initrd, cmdline };
    Some(tdx::expected_from_files(&files, shape, acpi).ok()?.events)
}

fn mismatch(register: u32, value: &Digest384, actual: &Digest384, expected: &[BootEvent], evidence: &Evidence) -> RtmrMismatch {
    let mut expected = expected.iter().filter(|event| event.imr == register);
    let logged = evidence.event_log.iter().filter(|event| event.imr == register).take(MAX_EVENTS);
    let events = logged
        .enumerate()
        .map(|(index, event)| {
            let wanted = expected.next();
            let status = match wanted {
                Some(wanted) if event.digest == wanted.digest => "match",
                Some(_) => "mismatch",
                None => "extra",
            };
            RtmrEvent {
                index,
                event_type: event.event_type,
                event_name: wanted.map_or_else(|| event.event.clone(), |wanted| wanted.name.to_owned()),
                actual_digest: hex::encode(&event.digest),
                expected_digest: wanted.map(|wanted| hex::encode(wanted.digest)),
                payload_len: event.event_payload.len(),
                status: status.to_owned(),
            }
        })
        .collect();
    RtmrMismatch {
        rtmr: format!("RTMR{register}"),
        expected: hex::encode(value),
        actual: hex::encode(actual),
        events,
        missing_expected_digests: expected.map(|event| hex::encode(event.digest)).collect(),
    }
}
