#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::sync::atomic::{AtomicUsize, Ordering};

use rustls_pki_types::alg_id;

use super::*;

/// Accepts the signature `valid` and counts how often it is asked.
#[derive(Debug)]
struct Counted(AtomicUsize);

impl SignatureVerificationAlgorithm for Counted {
    fn verify_signature(&self, _: &[u8], _: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        self.0.fetch_add(1, Ordering::Relaxed);
        if signature == b"valid" { Ok(()) } else { Err(InvalidSignature) }
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P256
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_SHA256
    }
}

fn remembered() -> (&'static Counted, RememberedSignatures) {
    let counted: &'static Counted = Box::leak(Box::new(Counted(AtomicUsize::new(0))));
    (counted, RememberedSignatures::new(counted))
}

fn asked(counted: &Counted) -> usize {
    counted.0.load(Ordering::Relaxed)
}

#[test]
fn computes_a_signature_that_held_once() {
    let (counted, remembered) = remembered();
    for _ in 0..3 {
        remembered.verify_signature(b"key", b"message", b"valid").unwrap();
    }
    assert_eq!(asked(counted), 1);
}

#[test]
fn computes_again_what_did_not_hold() {
    let (counted, remembered) = remembered();
    for _ in 0..3 {
        remembered.verify_signature(b"key", b"message", b"forged").unwrap_err();
    }
    assert_eq!(asked(counted), 3);
}

#[test]
fn another_key_message_or_signature_is_another_statement() {
    let (counted, remembered) = remembered();
    remembered.verify_signature(b"key", b"message", b"valid").unwrap();
    for parts in [[b"kez".as_slice(), b"message", b"valid"], [b"key", b"messagf", b"valid"], [b"keym", b"essage", b"valid"]] {
        let [key, message, signature] = parts;
        remembered.verify_signature(key, message, signature).unwrap();
    }
    remembered.verify_signature(b"key", b"message", b"forged").unwrap_err();
    assert_eq!(asked(counted), 5);
}

#[test]
fn holds_a_bounded_number_and_keeps_what_is_used() {
    let (counted, remembered) = remembered();
    remembered.verify_signature(b"vendor", b"papers", b"valid").unwrap();
    for guest in 0..10 * GENERATION {
        remembered.verify_signature(b"guest", &guest.to_be_bytes(), b"valid").unwrap();
        remembered.verify_signature(b"vendor", b"papers", b"valid").unwrap();
    }
    assert_eq!(asked(counted), 1 + 10 * GENERATION);
    let held = remembered.held();
    assert!(held.young.len() + held.old.len() <= 2 * GENERATION);
}

#[test]
fn holds_a_whole_generation_at_least() {
    let (counted, remembered) = remembered();
    for _ in 0..2 {
        for guest in 0..GENERATION {
            remembered.verify_signature(b"guest", &guest.to_be_bytes(), b"valid").unwrap();
        }
    }
    assert_eq!(asked(counted), GENERATION);
}
