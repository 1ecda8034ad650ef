//! What a client gets with its keys: that the release is in the log. Source: SPEC.md §5; C2SP tlog-proof.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tlog_tiles::{Hash, check_record, record_hash};

use crate::{Checkpoint, CheckpointError, LogVerifier};

const HEADER: &str = "c2sp.org/tlog-proof@v1";
/// Longest path: one hash per bit of the size.
const MAX_PATH: usize = 64;
/// Longest proof that is read.
const MAX_BYTES: usize = 1 << 20;

/// An entry, its place, the path to the root, and the signed root. Unverified.
#[derive(Debug, Clone, PartialEq)]
pub struct ReleaseProof {
    /// The leaf's bytes: the proof's extra data.
    pub entry: Vec<u8>,
    /// Place in the log, from 0.
    pub index: u64,
    /// From the leaf's sibling up.
    pub path: Vec<Hash>,
    /// The signed checkpoint.
    pub checkpoint: String,
}

/// A proof that proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProofError {
    /// Not a proof.
    #[error("line {line} of the proof is not {expected}")]
    Malformed {
        /// From 1.
        line: usize,
        /// What should stand there.
        expected: &'static str,
    },
    /// The checkpoint is not accepted.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The path does not lead from the entry to the root.
    #[error("entry {index} is not in the tree of {size} entries")]
    NotIncluded {
        /// Place that is claimed.
        index: u64,
        /// Of the checkpoint.
        size: u64,
    },
}

impl ReleaseProof {
    /// The proof as text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = format!("{HEADER}\nextra {}\nindex {}\n", STANDARD.encode(&self.entry), self.index);
        for hash in &self.path {
            text.push_str(&hash.to_string());
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&self.checkpoint);
        text
    }

    /// Reads a proof.
    ///
    /// Errors: the first line that is not what should stand there.
    pub fn parse(text: &str) -> Result<Self, ProofError> {
        let bad = |line, expected| ProofError::Malformed { line, expected };
        let (head, checkpoint) = text.split_once("\n\n").filter(|_| text.len() <= MAX_BYTES).ok_or(bad(1, "the start of a proof"))?;
        let mut lines = head.split('\n').enumerate().map(|(index, line)| (index + 1, line));
        let mut next = |expected, prefix| {
            let (line, text) = lines.next().ok_or(bad(0, expected))?;
            text.strip_prefix(prefix).map(|rest| (line, rest)).ok_or(bad(line, expected))
        };
        next("the header of a proof", HEADER).and_then(|(line, rest)| if rest.is_empty() { Ok(()) } else { Err(bad(line, HEADER)) })?;
        let (line, extra) = next("`extra` with the entry", "extra ")?;
        let entry = STANDARD.decode(extra).map_err(|_| bad(line, "base64 of the entry"))?;
        let (line, index) = next("`index`", "index ")?;
        let is_decimal = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
        let index = index.parse().ok().filter(|_| is_decimal).ok_or(bad(line, "a number"))?;
        let path: Vec<Hash> =
            lines.map(|(line, text)| Hash::parse_hash(text).map_err(|_| bad(line, "base64 of a hash"))).collect::<Result<_, _>>()?;
        if path.len() > MAX_PATH {
            return Err(bad(MAX_PATH + 4, "the end of the path"));
        }
        Ok(Self { entry, index, path, checkpoint: checkpoint.to_owned() })
    }

    /// Checks that the entry is in the log of `verifier`; gives the checkpoint, whose cosignatures are the caller's to count.
    ///
    /// Errors: another log, or an entry that is not in it.
    pub fn verify(&self, verifier: &LogVerifier) -> Result<Checkpoint, ProofError> {
        let checkpoint = verifier.open(&self.checkpoint)?;
        let (index, size) = (self.index, checkpoint.head.size);
        check_record(&self.path, size, checkpoint.head.root, index, record_hash(&self.entry))
            .map_err(|_| ProofError::NotIncluded { index, size })?;
        Ok(checkpoint)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;
    use crate::{Frontier, LogKey};

    fn proof() -> (ReleaseProof, LogKey) {
        let (key, mut frontier) = (LogKey::new("kms.test/log/1", &[7; 32]).unwrap(), Frontier::default());
        let appended = frontier.append([b"a".as_slice(), b"b", b"c", b"d", b"e"]);
        let path = appended.prove(5, 2).unwrap();
        (ReleaseProof { entry: b"c".to_vec(), index: 2, path, checkpoint: key.sign(frontier.head()) }, key)
    }

    #[test]
    fn a_proof_survives_its_text_and_holds() {
        let (proof, key) = proof();

        let read = ReleaseProof::parse(&proof.encode()).unwrap();

        assert_eq!(read, proof);
        assert_eq!(read.verify(&key.verifier()).unwrap().head.size, 5);
    }

    /// Each part changed by itself.
    #[test]
    fn a_proof_of_something_else_does_not_hold() {
        let key = proof().1.verifier();
        let changes: [fn(&mut ReleaseProof); 5] =
            [|p| p.entry = b"x".to_vec(), |p| p.index = 3, |p| p.index = 5, |p| p.path[1].0[0] ^= 1, |p| p.path.truncate(1)];
        for change in changes {
            let mut changed = proof().0;
            change(&mut changed);

            assert!(matches!(changed.verify(&key), Err(ProofError::NotIncluded { .. })), "{changed:?}");
        }
        let other = LogKey::new("kms.test/log/1", &[8; 32]).unwrap().verifier();
        assert!(matches!(proof().0.verify(&other), Err(ProofError::Checkpoint(_))));
    }

    #[test]
    fn what_is_not_a_proof_is_refused_with_its_line() {
        let good = proof().0.encode();
        for (bad, line) in [
            (String::new(), 1),
            (good.replacen("v1", "v2", 1), 1),
            (good.replacen("v1\n", "v11\n", 1), 1),
            (good.replacen("extra ", "extra !", 1), 2),
            (good.replacen("index 2", "index +2", 1), 3),
            (good.replacen("index 2", "index 99999999999999999999", 1), 3),
            (good.replacen("index 2\n", "index 2\nAAAA\n", 1), 4),
        ] {
            assert!(matches!(ReleaseProof::parse(&bad), Err(ProofError::Malformed { line: at, .. }) if at == line), "{bad}");
        }
    }
}
