#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use super::*;

const ALGORITHMS: [PathKeyAlgorithm; 3] = [PathKeyAlgorithm::Secp256k1, PathKeyAlgorithm::Secp256k1Prehashed, PathKeyAlgorithm::Ed25519];

fn path_key(algorithm: PathKeyAlgorithm) -> PathKey {
    let app_key = K256Key::from_scalar(&Secret::new([7; 32])).unwrap();
    PathKey::derive(&app_key, None, SIGNING_PATH, SIGNING_PURPOSE, algorithm).unwrap()
}

#[test]
fn names_and_aliases_of_algorithms() {
    for name in ["", "k256", "secp256k1"] {
        assert_eq!(name.parse(), Ok(PathKeyAlgorithm::Secp256k1));
    }
    assert_eq!("ed25519".parse(), Ok(PathKeyAlgorithm::Ed25519));
    assert_eq!("rsa".parse::<PathKeyAlgorithm>(), Err(UnknownAlgorithm));
}

#[test]
fn a_signature_verifies_for_its_message_and_key_only() {
    for algorithm in ALGORITHMS {
        let key = path_key(algorithm);
        let signature = key.sign(&[1; 32]).unwrap();

        assert_eq!(signature.len(), 64);
        assert_eq!(verify_message(algorithm, &[1; 32], &signature, key.public_key()), Ok(true), "{algorithm:?}");
        assert_eq!(verify_message(algorithm, &[2; 32], &signature, key.public_key()), Ok(false), "{algorithm:?}");
    }
}

#[test]
fn prehashed_signs_the_digest_that_plain_signing_computes() {
    let digest: [u8; 32] = Sha256::digest(b"message").into();

    let signature = path_key(PathKeyAlgorithm::Secp256k1Prehashed).sign(&digest).unwrap();

    assert_eq!(signature, path_key(PathKeyAlgorithm::Secp256k1).sign(b"message").unwrap());
}

#[test]
fn undecodable_input_is_an_error_and_not_a_mismatch() {
    let key = path_key(PathKeyAlgorithm::Secp256k1);
    let signature = key.sign(b"m").unwrap();
    for algorithm in ALGORITHMS {
        assert_eq!(verify_message(algorithm, &[1; 32], &signature, &[1, 2, 3]), Err(SignatureError::PublicKey));
        assert_eq!(verify_message(algorithm, &[1; 32], &[0; 63], path_key(algorithm).public_key()), Err(SignatureError::Signature));
    }
    let error = path_key(PathKeyAlgorithm::Secp256k1Prehashed).sign(b"short").unwrap_err();
    assert_eq!(error.to_string(), "Pre-hashed signing requires a 32-byte digest, but received 5 bytes");
}
