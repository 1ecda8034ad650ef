//! Signatures that held.
//!
//! Nearly all signatures under a quote are the vendor's papers: the chains of PCK and TCB signer, two revocation lists, TCB information,
//! the identity of the quoting enclave. They are the same for every guest of a platform, and a signature that held once holds for ever.
//! What changes with time (validity, revocation, TCB level) is judged anew each time; it is not a matter of signatures.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};

use crate::sha256_of_parts;

/// Signatures in one generation.
const GENERATION: usize = 2048;

/// SHA-256 over key, message and signature.
type Statement = [u8; 32];

/// Two generations: what is used moves to the young one; when that is full, it becomes the old one. 64 bytes each, at most 4096.
#[derive(Debug)]
struct Held {
    young: BTreeSet<Statement>,
    old: BTreeSet<Statement>,
}

impl Held {
    fn find(&mut self, statement: &Statement) -> bool {
        if self.young.contains(statement) {
            return true;
        }
        let found = self.old.remove(statement);
        if found {
            self.insert(*statement);
        }
        found
    }

    fn insert(&mut self, statement: Statement) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(statement);
    }
}

/// An algorithm that computes each signature once. Failures are not remembered.
#[derive(Debug)]
pub(crate) struct RememberedSignatures {
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    held: Mutex<Held>,
}

impl RememberedSignatures {
    pub(crate) const fn new(algorithm: &'static dyn SignatureVerificationAlgorithm) -> Self {
        Self { algorithm, held: Mutex::new(Held { young: BTreeSet::new(), old: BTreeSet::new() }) }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SignatureVerificationAlgorithm for RememberedSignatures {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let statement = sha256_of_parts(&[public_key, message, signature]);
        if self.held().find(&statement) {
            return Ok(());
        }
        self.algorithm.verify_signature(public_key, message, signature)?;
        self.held().insert(statement);
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }

    fn fips(&self) -> bool {
        self.algorithm.fips()
    }
}

#[cfg(test)]
mod tests;
