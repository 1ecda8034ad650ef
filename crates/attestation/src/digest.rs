//! One hash over several byte strings.

use sha2::{Digest as _, Sha256};

/// SHA-256 over `parts`, each with its length (8 bytes, big-endian) before it, so that no two lists give the same input.
#[must_use]
pub fn sha256_of_parts(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(sha256_of_parts(&[b"ab", b"c"]), sha256_of_parts(&[b"a", b"bc"]));
        assert_ne!(sha256_of_parts(&[b"ab"]), sha256_of_parts(&[b"ab", b""]));
        assert_ne!(sha256_of_parts(&[]), sha256_of_parts(&[b""]));
    }

    #[test]
    fn a_part_counts_with_its_length_before_it() {
        let expected: [u8; 32] = Sha256::digest(b"\0\0\0\0\0\0\0\x02ab").into();

        assert_eq!(sha256_of_parts(&[b"ab"]), expected);
    }
}
