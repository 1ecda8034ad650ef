//! A TD that booted a known image, as its quotes show it.

use dstack_attestation::{AcpiSource, DocumentReference, ImageReference as _, bound_measurement};
use dstack_event_log::{Event, EventVersion, RuntimeEvent, names, replay};
use dstack_manifest::{AppId, ComposeHash, InstanceId, MeasurementDocument, OsImageHash, VmConfig, mr_config_id_v1};
use dstack_tee_simulator::QuoteBody;
use sha2::{Digest as _, Sha256};

/// Measurement document of the image: see the PROVENANCE.md beside it.
const MEASUREMENT: &[u8] = include_bytes!("../../measurement/tests/testdata/tdx/image1.measurement.tdx.cbor");

fn checksum_file() -> Vec<u8> {
    format!("{}  measurement.tdx.cbor\n", hex::encode(Sha256::digest(MEASUREMENT))).into_bytes()
}

/// Hash of the image.
#[must_use]
pub fn os_image_hash() -> OsImageHash {
    OsImageHash::new(Sha256::digest(checksum_file()).into())
}

/// The VM that booted it.
#[must_use]
pub fn vm_config() -> VmConfig {
    VmConfig {
        spec_version: 1,
        os_image_hash: Some(os_image_hash()),
        cpu_count: 2,
        memory_size: 2 << 30,
        qemu_version: Some("10.0.0".into()),
        num_nics: 1,
        host_share_mode: "vhd".into(),
        tdx_measurement: Some(MeasurementDocument { checksum_file: checksum_file(), measurement: MEASUREMENT.to_vec() }),
        simulated_tee: Some("dstack-tdx".into()),
        ..VmConfig::default()
    }
}

/// A runtime event of digest version 1.
#[must_use]
pub fn event(name: &str, payload: &[u8]) -> RuntimeEvent {
    RuntimeEvent::new(name, payload, EventVersion::V1)
}

/// What dstack-init measures of an app before it asks for keys, without the end of it.
#[must_use]
pub fn identity_events(app_id: &AppId, compose_hash: &ComposeHash, instance_id: &InstanceId) -> Vec<RuntimeEvent> {
    vec![
        event(names::SYSTEM_PREPARING, b""),
        event(names::APP_ID, app_id.as_bytes()),
        event(names::COMPOSE_HASH, compose_hash.as_bytes()),
        event(names::INSTANCE_ID, instance_id.as_bytes()),
    ]
}

/// The report of a TD that booted the image for `compose_hash` and measured `log`, over `report_data`. Tests change single fields of it.
///
/// # Panics
/// Never: the image can be measured.
#[must_use]
pub fn quote_body(compose_hash: &ComposeHash, log: &[Event], report_data: [u8; 64]) -> QuoteBody {
    let config = vm_config();
    let (_, image) = bound_measurement(&config).unwrap();
    let launch = DocumentReference.expected(&image, &config, AcpiSource::SoftwareTee);
    let launch = launch.unwrap_or_else(|error| panic!("the image cannot be measured: {error}"));
    let [.., rtmr3] = replay(log).unwrap().0;
    let [rtmr0, rtmr1, rtmr2] = launch.rtmr;
    QuoteBody::new(launch.mrtd, [rtmr0, rtmr1, rtmr2, rtmr3], mr_config_id_v1(compose_hash), report_data)
}
