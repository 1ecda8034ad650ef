//! Signed tree heads. Source: SPEC.md §4; C2SP tlog-checkpoint, signed-note.

use std::fmt;

use ed25519_dalek::{Signer as _, SigningKey, Verifier as _, VerifyingKey};
use signed_note::{Note, Signature, Verifier, VerifierList, is_key_name_valid, key_id, new_ed25519_verifier_key};
use tlog_tiles::Hash;
use zeroize::Zeroizing;

/// Largest tree that is read.
pub const MAX_TREE_SIZE: u64 = 1 << 48;
/// Signature type of a log's key in a verifier key.
const ED25519: u8 = 1;

/// Size and root of a tree.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TreeHead {
    /// Number of entries.
    pub size: u64,
    /// RFC 6962 root.
    pub root: Hash,
}

/// A checkpoint, key or signature that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// Not a note.
    #[error("checkpoint is not a signed note")]
    Note,
    /// The note's text is not a tree head.
    #[error("checkpoint is not one of a tree")]
    Text,
    /// Of another log.
    #[error("checkpoint is of the log {got:?}, expected {expected:?}")]
    Origin {
        /// What it says.
        got: String,
        /// What was asked for.
        expected: String,
    },
    /// Not signed by the key.
    #[error("checkpoint is not signed by {name}")]
    Signature {
        /// The key's name.
        name: String,
    },
    /// Not a verifier key.
    #[error("{text:?} is not a verifier key: name+id+base64 of an Ed25519 key")]
    VerifierKey {
        /// What was given.
        text: String,
    },
    /// A name with spaces or a plus sign.
    #[error("{name:?} cannot be the name of a key")]
    Name {
        /// What was given.
        name: String,
    },
}

/// A tree head with the log it is of.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Name of the log.
    pub origin: String,
    /// Size and root.
    pub head: TreeHead,
}

impl Checkpoint {
    /// The text that is signed.
    pub(crate) fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.head.size, self.head.root)
    }

    pub(crate) fn parse(text: &[u8]) -> Result<Self, CheckpointError> {
        let parsed = tlog_tiles::Checkpoint::from_bytes(text).map_err(|_| CheckpointError::Text)?;
        // Our logs write no extension lines, and what is not understood is not signed.
        if parsed.size() > MAX_TREE_SIZE || !parsed.extension().is_empty() {
            return Err(CheckpointError::Text);
        }
        Ok(Self { origin: parsed.origin().to_owned(), head: TreeHead { size: parsed.size(), root: *parsed.hash() } })
    }
}

/// The key of a log. No `Debug` content.
pub struct LogKey {
    origin: String,
    key: SigningKey,
}

impl fmt::Debug for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogKey({}, ..)", self.origin)
    }
}

impl LogKey {
    /// The key with this seed, of the log `origin`.
    ///
    /// Errors: the origin cannot be the name of a key.
    pub fn new(origin: &str, seed: &[u8; 32]) -> Result<Self, CheckpointError> {
        if !is_key_name_valid(origin) || origin.chars().any(char::is_control) {
            return Err(CheckpointError::Name { name: origin.to_owned() });
        }
        let seed = Zeroizing::new(*seed);
        Ok(Self { origin: origin.to_owned(), key: SigningKey::from_bytes(&seed) })
    }

    /// What others check its checkpoints with.
    #[must_use]
    pub fn verifier(&self) -> LogVerifier {
        LogVerifier { origin: self.origin.clone(), key: self.key.verifying_key() }
    }

    /// The signed checkpoint of a tree, as text.
    #[must_use]
    pub fn sign(&self, head: TreeHead) -> String {
        let text = Checkpoint { origin: self.origin.clone(), head }.text();
        let signature = self.key.sign(text.as_bytes()).to_vec();
        let line = signature_line(&self.origin, self.verifier().id(), signature);
        format!("{text}\n{line}")
    }
}

pub(crate) fn signature_line(name: &str, id: u32, signature: Vec<u8>) -> String {
    let line = Signature::new(name.to_owned(), id, signature).map(|signature| signature.to_bytes()).unwrap_or_default();
    String::from_utf8(line).unwrap_or_default()
}

/// What a log's checkpoints are checked with: the one thing about it that must come from a trusted place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogVerifier {
    origin: String,
    key: VerifyingKey,
}

impl LogVerifier {
    /// Reads a verifier key, `<origin>+<id>+<base64>`.
    ///
    /// Errors: another text, another algorithm, or an id that is not the key's.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let (origin, key) = parse_verifier_key(text, ED25519)?;
        Ok(Self { origin, key })
    }

    /// Name of the log.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The public key, 32 bytes.
    #[must_use]
    pub fn public_key(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    /// The checkpoint in a note that this log signed. Other signatures in it are not looked at.
    ///
    /// Errors: another document, log or signer.
    pub fn open(&self, note: &str) -> Result<Checkpoint, CheckpointError> {
        let parsed = Note::from_bytes(note.as_bytes()).map_err(|_| CheckpointError::Note)?;
        let checkpoint = Checkpoint::parse(parsed.text())?;
        if checkpoint.origin != self.origin {
            return Err(CheckpointError::Origin { got: checkpoint.origin, expected: self.origin.clone() });
        }
        let known = VerifierList::new(vec![Box::new(self.clone())]);
        parsed.verify(&known).map_err(|_| CheckpointError::Signature { name: self.origin.clone() })?;
        Ok(checkpoint)
    }

    fn id(&self) -> u32 {
        key_id(&self.origin, &[&[ED25519], self.key.as_bytes().as_slice()].concat())
    }
}

impl fmt::Display for LogVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&new_ed25519_verifier_key(&self.origin, &self.key))
    }
}

impl Verifier for LogVerifier {
    fn name(&self) -> &str {
        &self.origin
    }

    fn key_id(&self) -> u32 {
        self.id()
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        ed25519_dalek::Signature::from_slice(signature).is_ok_and(|signature| self.key.verify(message, &signature).is_ok())
    }
}

/// Name and key of a verifier key with the signature type `kind`.
pub(crate) fn parse_verifier_key(text: &str, kind: u8) -> Result<(String, VerifyingKey), CheckpointError> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let bad = || CheckpointError::VerifierKey { text: text.chars().take(300).collect() };
    let (name, rest) = text.trim().split_once('+').ok_or_else(bad)?;
    let (id, encoded) = rest.split_once('+').ok_or_else(bad)?;
    let bytes = STANDARD.decode(encoded).map_err(|_| bad())?;
    let (got, key) = bytes.split_first().ok_or_else(bad)?;
    let key: &[u8; 32] = key.try_into().map_err(|_| bad())?;
    let is_right = *got == kind && is_key_name_valid(name) && format!("{:08x}", key_id(name, &bytes)) == id;
    if !is_right {
        return Err(bad());
    }
    Ok((name.to_owned(), VerifyingKey::from_bytes(key).map_err(|_| bad())?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    fn key() -> LogKey {
        LogKey::new("kms.test/log/1", &[7; 32]).unwrap()
    }

    fn head() -> TreeHead {
        TreeHead { size: 3, root: Hash([9; 32]) }
    }

    #[test]
    fn what_is_signed_opens_with_the_verifier_key() {
        let verifier = LogVerifier::parse(&key().verifier().to_string()).unwrap();

        let checkpoint = verifier.open(&key().sign(head())).unwrap();

        assert_eq!(checkpoint, Checkpoint { origin: "kms.test/log/1".into(), head: head() });
        assert!(key().sign(head()).starts_with("kms.test/log/1\n3\nCQkJ"));
    }

    #[test]
    fn each_change_of_a_checkpoint_is_noticed() {
        let (note, verifier) = (key().sign(head()), key().verifier());
        let other = LogKey::new("kms.test/log/1", &[8; 32]).unwrap();
        let elsewhere = LogKey::new("kms.test/log/2", &[7; 32]).unwrap();

        assert!(matches!(verifier.open(&note.replacen("\n3\n", "\n4\n", 1)), Err(CheckpointError::Signature { .. })));
        assert!(matches!(verifier.open(&note.replacen("\nCQkJ", "\nCQkK", 1)), Err(CheckpointError::Signature { .. })));
        assert!(matches!(verifier.open(&other.sign(head())), Err(CheckpointError::Signature { .. })));
        assert!(matches!(verifier.open(&elsewhere.sign(head())), Err(CheckpointError::Origin { .. })));
        assert_eq!(verifier.open("kms.test/log/1\n3\n"), Err(CheckpointError::Note));
        let huge = key().sign(TreeHead { size: MAX_TREE_SIZE + 1, root: Hash([9; 32]) });
        assert_eq!(verifier.open(&huge), Err(CheckpointError::Text));
    }

    #[test]
    fn verifier_keys_carry_their_own_check() {
        let text = key().verifier().to_string();
        for bad in ["", "a", "a+b", "a+00000000+AQ==", &text.replacen("kms", "kmz", 1), &format!("{text}A")] {
            assert!(LogVerifier::parse(bad).is_err(), "{bad}");
        }
        assert!(LogKey::new("with space", &[0; 32]).is_err());
        assert!(LogKey::new("with+plus", &[0; 32]).is_err());
    }
}
