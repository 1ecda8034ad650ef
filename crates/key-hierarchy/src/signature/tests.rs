#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use proptest::prelude::*;

use super::*;
use crate::{K256Key, Secret};

const NOW: u64 = 1_700_000_000;

fn key() -> K256Key {
    K256Key::from_scalar(&Secret::new([7; 32])).unwrap()
}

fn verify_at(now: u64) -> Result<(), VerifyEnvKeyError> {
    let app = AppId::new([1; 20]);
    let signature = key().sign_digest(&env_key_digest_v1(&app, NOW, &[2; 32])).unwrap();
    verify_env_key_v1(&app, (&[2; 32], NOW), &signature, &key().public_key(), now)
}

#[test]
fn timed_signature_holds_within_its_window_only() {
    assert_eq!(verify_at(NOW + 300), Ok(()));
    assert_eq!(verify_at(NOW + 301), Err(VerifyEnvKeyError::Stale { age_seconds: 301 }));
    assert_eq!(verify_at(NOW - 60), Ok(()));
    assert_eq!(verify_at(NOW - 61), Err(VerifyEnvKeyError::Future { ahead_seconds: 61 }));
}

#[test]
fn timed_signature_covers_app_time_and_key() {
    let app = AppId::new([1; 20]);
    let signature = key().sign_digest(&env_key_digest_v1(&app, NOW, &[2; 32])).unwrap();
    let signer = key().public_key();
    let refused = Err(VerifyEnvKeyError::Signer);

    assert_eq!(verify_env_key_v1(&AppId::new([3; 20]), (&[2; 32], NOW), &signature, &signer, NOW), refused);
    assert_eq!(verify_env_key_v1(&app, (&[3; 32], NOW), &signature, &signer, NOW), refused);
    assert_eq!(verify_env_key_v1(&app, (&[2; 32], NOW + 1), &signature, &signer, NOW), refused);
    assert_eq!(verify_env_key(&app, &[2; 32], &signature, &signer), refused);
}

#[test]
fn recovery_refuses_malformed_signatures() {
    let digest = [5; 32];
    let good = key().sign_digest(&digest).unwrap();
    assert_eq!(recover(&digest, &good), Some(key().public_key()));

    for id in [2, 3, 4, 27, 28, 255] {
        let mut bad = good;
        bad[64] = id;
        assert_eq!(recover(&digest, &bad), None, "recovery id {id}");
    }
    assert_eq!(recover(&digest, &good[..64]), None);
    assert_eq!(recover(&digest, &[0; 65]), None);
    assert_eq!(recover(&digest, &[]), None);
}

proptest! {
    #[test]
    fn signatures_are_deterministic_low_s_and_recover(digest: [u8; 32]) {
        let signature = key().sign_digest(&digest).unwrap();

        prop_assert_eq!(signature, key().sign_digest(&digest).unwrap());
        prop_assert!(signature[64] <= 1);
        let parsed = Signature::from_slice(&signature[..64]).unwrap();
        prop_assert!(parsed.normalize_s().is_none());
        prop_assert_eq!(recover(&digest, &signature), Some(key().public_key()));
    }
}
