//! Witnesses: others who sign that a log only ever grew. Source: SPEC.md §6; C2SP tlog-cosignature, tlog-witness.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signer as _, SigningKey, Verifier as _, VerifyingKey};
use signed_note::{Signature, key_id};
use tlog_tiles::{Hash, check_tree};
use zeroize::Zeroizing;

use crate::{
    Checkpoint, CheckpointError, LogVerifier, TreeHead,
    checkpoint::{parse_verifier_key, signature_line},
};

/// Signature type of a cosignature in a verifier key.
const COSIGNATURE: u8 = 4;
/// Most hashes of a consistency proof.
const MAX_PROOF: usize = 63;

fn message(time: u64, text: &[u8]) -> Vec<u8> {
    [format!("cosignature/v1\ntime {time}\n").as_bytes(), text].concat()
}

fn cosigner_id(name: &str, key: &VerifyingKey) -> u32 {
    key_id(name, &[&[COSIGNATURE], key.as_bytes().as_slice()].concat())
}

/// A witness whose signatures count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cosigner {
    name: String,
    key: VerifyingKey,
}

impl Cosigner {
    /// Reads a witness's verifier key, `<name>+<id>+<base64>`.
    ///
    /// Errors: another text, another algorithm, or an id that is not the key's.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let (name, key) = parse_verifier_key(text, COSIGNATURE)?;
        Ok(Self { name, key })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When this witness signed the checkpoint in `note`, Unix seconds; none if it did not.
    #[must_use]
    pub fn signed_at(&self, note: &str) -> Option<u64> {
        let (text, signatures) = note.rsplit_once("\n\n")?;
        let text = format!("{text}\n");
        signatures.lines().find_map(|line| self.check_line(line, text.as_bytes()))
    }

    /// The line of `lines` with this witness's signature over the checkpoint in `note`.
    #[must_use]
    pub fn pick<'a>(&self, lines: &'a str, note: &str) -> Option<&'a str> {
        let (text, _) = note.rsplit_once("\n\n")?;
        let text = format!("{text}\n");
        lines.lines().find(|line| self.check_line(line, text.as_bytes()).is_some())
    }

    fn check_line(&self, line: &str, text: &[u8]) -> Option<u64> {
        let signature = Signature::from_bytes(line.as_bytes()).ok()?;
        if signature.name() != self.name || signature.id() != cosigner_id(&self.name, &self.key) {
            return None;
        }
        let (time, bytes) = signature.signature().split_first_chunk::<8>()?;
        let time = u64::from_be_bytes(*time);
        let bytes = ed25519_dalek::Signature::from_slice(bytes).ok()?;
        self.key.verify(&message(time, text), &bytes).is_ok().then_some(time)
    }
}

/// The key of a witness. No `Debug` content.
pub struct WitnessKey {
    name: String,
    key: SigningKey,
}

impl std::fmt::Debug for WitnessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WitnessKey({}, ..)", self.name)
    }
}

impl WitnessKey {
    /// The key with this seed.
    ///
    /// Errors: the name cannot be that of a key.
    pub fn new(name: &str, seed: &[u8; 32]) -> Result<Self, CheckpointError> {
        if !signed_note::is_key_name_valid(name) || name.chars().any(char::is_control) {
            return Err(CheckpointError::Name { name: name.to_owned() });
        }
        let seed = Zeroizing::new(*seed);
        Ok(Self { name: name.to_owned(), key: SigningKey::from_bytes(&seed) })
    }

    /// What its signatures are checked with, as text.
    #[must_use]
    pub fn verifier_key(&self) -> String {
        let key = self.key.verifying_key();
        let bytes = [&[COSIGNATURE], key.as_bytes().as_slice()].concat();
        format!("{}+{:08x}+{}", self.name, cosigner_id(&self.name, &key), STANDARD.encode(bytes))
    }

    fn cosign(&self, checkpoint: &Checkpoint, time: u64) -> String {
        let signature = self.key.sign(&message(time, checkpoint.text().as_bytes()));
        let bytes = [time.to_be_bytes().as_slice(), &signature.to_bytes()].concat();
        signature_line(&self.name, cosigner_id(&self.name, &self.key.verifying_key()), bytes)
    }
}

/// The request of a log to a witness: what the witness saw last, the proof that the new tree extends it, the new checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct AddCheckpoint {
    /// Size the witness is believed to have seen.
    pub old_size: u64,
    /// Consistency proof from there.
    pub proof: Vec<Hash>,
    /// The signed checkpoint.
    pub checkpoint: String,
}

/// Why a witness does not sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WitnessRefusal {
    /// The request is not one.
    #[error("not an add-checkpoint request")]
    Malformed,
    /// The checkpoint is not of a log that is watched.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The witness has seen another size. It is told so that the log tries again.
    #[error("the last size seen is {seen}")]
    OtherSize {
        /// What the witness has seen.
        seen: u64,
    },
    /// The new tree does not extend the one seen: the log lies to somebody.
    #[error("the tree of {new} entries does not extend the one of {old} that was signed")]
    Inconsistent {
        /// Size seen.
        old: u64,
        /// Size claimed.
        new: u64,
    },
}

impl AddCheckpoint {
    /// The request's body.
    #[must_use]
    pub fn encode(&self) -> String {
        let proof: String = self.proof.iter().map(|hash| format!("{hash}\n")).collect();
        format!("old {}\n{proof}\n{}", self.old_size, self.checkpoint)
    }

    /// Reads a request's body.
    ///
    /// Errors: not one.
    pub fn parse(text: &str) -> Result<Self, WitnessRefusal> {
        let (head, checkpoint) = text.split_once("\n\n").ok_or(WitnessRefusal::Malformed)?;
        let mut lines = head.split('\n');
        let old = lines.next().and_then(|line| line.strip_prefix("old ")).ok_or(WitnessRefusal::Malformed)?;
        let proof: Vec<Hash> = lines.map(Hash::parse_hash).collect::<Result<_, _>>().map_err(|_| WitnessRefusal::Malformed)?;
        if proof.len() > MAX_PROOF {
            return Err(WitnessRefusal::Malformed);
        }
        Ok(Self { old_size: old.parse().map_err(|_| WitnessRefusal::Malformed)?, proof, checkpoint: checkpoint.to_owned() })
    }
}

/// What a witness remembers of one log.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WitnessState {
    /// The last tree it signed; none at first.
    pub seen: Option<TreeHead>,
}

impl WitnessState {
    /// Checks a request and signs. The new state must be kept durably before the signature is given out.
    ///
    /// Errors: the reason; the state is unchanged.
    pub fn cosign(&self, request: &AddCheckpoint, log: &LogVerifier, key: &WitnessKey, now: u64) -> Result<(Self, String), WitnessRefusal> {
        let checkpoint = log.open(&request.checkpoint)?;
        let seen = self.seen.map_or(0, |head| head.size);
        let new = checkpoint.head;
        if request.old_size != seen || new.size < seen {
            return Err(WitnessRefusal::OtherSize { seen });
        }
        let is_consistent = match self.seen {
            None | Some(TreeHead { size: 0, .. }) => request.proof.is_empty(),
            Some(old) if old.size == new.size => request.proof.is_empty() && old.root == new.root,
            Some(old) => check_tree(&request.proof, new.size, new.root, old.size, old.root).is_ok(),
        };
        if !is_consistent {
            return Err(WitnessRefusal::Inconsistent { old: seen, new: new.size });
        }
        Ok((Self { seen: Some(new) }, key.cosign(&checkpoint, now)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use tlog_tiles::{HashReader, prove_tree};

    use super::*;
    use crate::{Frontier, LogKey};

    struct Stored(Vec<Hash>);

    impl HashReader for Stored {
        fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog_tiles::Error> {
            Ok(indexes.iter().map(|index| self.0[usize::try_from(*index).unwrap()]).collect())
        }
    }

    struct Log {
        key: LogKey,
        frontier: Frontier,
        stored: Stored,
    }

    impl Log {
        fn new() -> Self {
            Self { key: LogKey::new("kms.test/log/1", &[7; 32]).unwrap(), frontier: Frontier::default(), stored: Stored(Vec::new()) }
        }

        fn grow(&mut self, entries: &[&[u8]]) {
            self.stored.0.extend(self.frontier.append(entries.iter().copied()).hashes);
        }

        fn request(&self, old_size: u64) -> AddCheckpoint {
            let head = self.frontier.head();
            let proof =
                if old_size == 0 || old_size >= head.size { Vec::new() } else { prove_tree(head.size, old_size, &self.stored).unwrap() };
            AddCheckpoint { old_size, proof, checkpoint: self.key.sign(head) }
        }
    }

    fn witness() -> WitnessKey {
        WitnessKey::new("witness.test", &[3; 32]).unwrap()
    }

    #[test]
    fn a_witness_signs_what_grew_and_the_signature_counts() {
        let (mut log, witness) = (Log::new(), witness());
        let (cosigner, verifier) = (Cosigner::parse(&witness.verifier_key()).unwrap(), log.key.verifier());
        let mut state = WitnessState::default();
        for (old, now) in [(0, 100), (3, 200), (6, 300)] {
            log.grow(&[b"a", b"b", b"c"]);
            let request = AddCheckpoint::parse(&log.request(old).encode()).unwrap();

            let (next, line) = state.cosign(&request, &verifier, &witness, now).unwrap();

            state = next;
            let note = format!("{}{}\n", request.checkpoint, cosigner.pick(&line, &request.checkpoint).unwrap());
            assert_eq!(cosigner.signed_at(&note), Some(now));
            assert_eq!(verifier.open(&note).unwrap().head, log.frontier.head(), "the log's own signature still holds");
            assert_eq!(cosigner.signed_at(&request.checkpoint), None);
        }
        assert_eq!(state.seen.unwrap().size, 9);
    }

    #[test]
    fn a_log_that_shrank_or_forked_gets_no_signature() {
        let (mut log, witness) = (Log::new(), witness());
        let verifier = log.key.verifier();
        log.grow(&[b"a", b"b", b"c"]);
        let (state, _) = WitnessState::default().cosign(&log.request(0), &verifier, &witness, 1).unwrap();

        let mut shorter = Log::new();
        shorter.grow(&[b"a"]);
        assert_eq!(state.cosign(&shorter.request(0), &verifier, &witness, 2), Err(WitnessRefusal::OtherSize { seen: 3 }));
        let mut forked = Log::new();
        forked.grow(&[b"a", b"b", b"x"]);
        assert_eq!(state.cosign(&forked.request(3), &verifier, &witness, 2), Err(WitnessRefusal::Inconsistent { old: 3, new: 3 }));
        forked.grow(&[b"d"]);
        assert_eq!(state.cosign(&forked.request(3), &verifier, &witness, 2), Err(WitnessRefusal::Inconsistent { old: 3, new: 4 }));
        let stranger = Log { key: LogKey::new("kms.test/log/1", &[8; 32]).unwrap(), ..Log::new() };
        assert!(matches!(state.cosign(&stranger.request(3), &verifier, &witness, 2), Err(WitnessRefusal::Checkpoint(_))));
    }

    #[test]
    fn a_signature_of_another_witness_time_or_text_does_not_count() {
        let (mut log, witness) = (Log::new(), witness());
        log.grow(&[b"a"]);
        let request = log.request(0);
        let (_, line) = WitnessState::default().cosign(&request, &log.key.verifier(), &witness, 100).unwrap();
        let other = Cosigner::parse(&WitnessKey::new("witness.test", &[4; 32]).unwrap().verifier_key()).unwrap();
        let cosigner = Cosigner::parse(&witness.verifier_key()).unwrap();
        log.grow(&[b"b"]);

        assert!(other.pick(&line, &request.checkpoint).is_none());
        assert!(cosigner.pick(&line, &log.key.sign(log.frontier.head())).is_none());
        assert!(Cosigner::parse(&log.key.verifier().to_string()).is_err(), "a log's key is not a witness's");
    }
}
