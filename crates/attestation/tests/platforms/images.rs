//! Measurement documents of images for clouds.

use ciborium::Value;
use dstack_attestation::{CloudImageError, aws_boot_pcr_digest, gcp_uki_authenticode};
use dstack_manifest::{MeasurementDocument, OsImageHash};
use sha2::{Digest as _, Sha256};

fn bound(name: &str, fields: Vec<(Value, Value)>) -> (MeasurementDocument, OsImageHash) {
    let mut measurement = Vec::new();
    ciborium::into_writer(&Value::Map(fields), &mut measurement).unwrap();
    let checksum_file = format!("{}  {name}\n", hex::encode(Sha256::digest(&measurement))).into_bytes();
    let hash: [u8; 32] = Sha256::digest(&checksum_file).into();
    (MeasurementDocument { checksum_file, measurement }, OsImageHash::try_from(hash.as_slice()).unwrap())
}

fn gcp(version: u32, digest: &[u8]) -> (MeasurementDocument, OsImageHash) {
    bound("measurement.gcp.cbor", vec![("version".into(), version.into()), ("uki_auth".into(), digest.to_vec().into())])
}

fn aws(digest: &[u8]) -> (MeasurementDocument, OsImageHash) {
    bound("measurement.aws.cbor", vec![("boot_pcr_digest".into(), digest.to_vec().into())])
}

#[test]
fn bound_documents_give_their_digests() {
    let (document, hash) = gcp(1, &[7; 32]);
    assert_eq!(gcp_uki_authenticode(&document, &hash), Ok([7; 32]));

    let (document, hash) = aws(&[8; 32]);
    assert_eq!(aws_boot_pcr_digest(&document, &hash), Ok([8; 32]));
}

#[test]
fn rejects_documents_of_other_images_and_clouds() {
    let (document, hash) = gcp(1, &[7; 32]);
    let (_, other_hash) = gcp(1, &[6; 32]);
    let mut other = document.clone();
    other.measurement = gcp(1, &[6; 32]).0.measurement;

    assert!(matches!(gcp_uki_authenticode(&document, &other_hash), Err(CloudImageError::NotBound(_))));
    assert!(matches!(gcp_uki_authenticode(&other, &hash), Err(CloudImageError::NotBound(_))));
    assert!(matches!(aws_boot_pcr_digest(&document, &hash), Err(CloudImageError::NotBound(_))));
}

#[test]
fn rejects_documents_of_other_forms() {
    for (document, hash) in [gcp(2, &[7; 32]), gcp(1, &[7; 31])] {
        assert!(matches!(gcp_uki_authenticode(&document, &hash), Err(CloudImageError::Document(_))));
    }
    let (document, hash) = aws(&[8; 33]);
    assert!(matches!(aws_boot_pcr_digest(&document, &hash), Err(CloudImageError::Document(_))));
}
