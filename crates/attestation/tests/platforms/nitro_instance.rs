//! Instances with a NitroTPM: image and runtime events.

use dstack_attestation::nitro::{InstanceFault, boot_pcr_digest, check_instance, device_id, device_id_by_prefix, enclave_digest};
use dstack_event_log::{EventVersion, RuntimeEvent};
use sha2::{Digest as _, Sha256, Sha384};

use crate::nitro_fields::{Cloud, Fields};

fn events() -> Vec<RuntimeEvent> {
    [("app-id", vec![1; 20]), ("compose-hash", vec![2; 32])]
        .map(|(name, payload)| RuntimeEvent::new(name, payload, EventVersion::V1))
        .to_vec()
}

/// PCR 14 as the events of [`events`] leave it, written out.
fn pcr14() -> [u8; 48] {
    let digest = |name: &[u8], payload: &[u8]| Sha384::digest([&[1, 0, 0, 8, b':'], name, b":", payload].concat());
    let first = Sha384::digest([[0; 48].as_slice(), &digest(b"app-id", &[1; 20])].concat());
    Sha384::digest([first.as_slice(), &digest(b"compose-hash", &[2; 32])].concat()).into()
}

fn instance(cloud: &Cloud) -> Fields {
    let pcrs = [(4, [4; 48]), (7, [7; 48]), (12, [12; 48]), (14, pcr14())];
    let mut fields = cloud.fields("nitrotpm_pcrs", &pcrs);
    fields[0].1 = "i-0123456789abcdef0".into();
    fields
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    Sha256::digest(parts.concat()).into()
}

#[test]
fn image_and_events_are_proven() {
    let cloud = Cloud::new();
    let verified = cloud.verify_instance(&instance(&cloud)).unwrap();
    let image = sha256(&[&[4; 48], &[7; 48], &[12; 48]]);

    assert_eq!(boot_pcr_digest(&verified), Ok(image));
    let boot = check_instance(&verified, &image, &events()).unwrap();

    assert_eq!(boot.mr_system(None), sha256(&[&[4; 48], &[7; 48], &[12; 48], &[0; 32]]));
    assert_eq!(boot.mr_system(Some(b"kms")), sha256(&[&[4; 48], &[7; 48], &[12; 48], &sha256(&[b"kms"])]));
    assert_eq!(boot.mr_aggregated(), sha256(&[&[4; 48], &[7; 48], &[12; 48], &pcr14()]));
    assert_eq!(device_id(&verified), sha256(&[b"i-0123456789abcdef0"]));
    assert_eq!(device_id_by_prefix(&verified), sha256(&[b"i"]));
    assert_eq!(verified.platform().debug(), None);
    assert_eq!(enclave_digest(&verified), None);
}

#[test]
fn rejects_another_image_or_other_events() {
    let cloud = Cloud::new();
    let verified = cloud.verify_instance(&instance(&cloud)).unwrap();
    let image = boot_pcr_digest(&verified).unwrap();
    let mut renamed = events();
    renamed[0].event = "app_id".to_owned();
    let mut swapped = events();
    swapped.swap(0, 1);

    assert!(matches!(check_instance(&verified, &[0; 32], &events()), Err(InstanceFault::OtherImage { .. })));
    for other in [renamed, swapped, Vec::new(), events()[..1].to_vec()] {
        assert!(matches!(check_instance(&verified, &image, &other), Err(InstanceFault::OtherEvents { .. })));
    }
}

#[test]
fn rejects_documents_without_a_register_or_of_an_enclave() {
    let cloud = Cloud::new();
    let pcrs = [(4, [4; 48]), (7, [7; 48]), (12, [12; 48]), (14, pcr14())];

    for missing in 0..4 {
        let mut some = pcrs.to_vec();
        let (pcr, _) = some.remove(missing);
        let verified = cloud.verify_instance(&cloud.fields("nitrotpm_pcrs", &some)).unwrap();
        let image = sha256(&[&[4; 48], &[7; 48], &[12; 48]]);
        assert_eq!(check_instance(&verified, &image, &events()), Err(InstanceFault::NoRegister { pcr }));
    }
}
