//! Users with passwords, as `htpasswd -B` writes them.
//!
//! A bcrypt comparison takes long on purpose. So one runs at a time, off the threads that serve, and a pair that was right is remembered.

use std::{
    collections::BTreeMap,
    path::Path,
    str::FromStr as _,
    sync::{Arc, Mutex, PoisonError},
};

use bcrypt::HashParts;
use rand_core::{OsRng, RngCore as _};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::AccessError;

/// Costlier hashes would let a stranger keep a processor busy.
const MAX_COST: u32 = 14;
/// Pairs that are remembered.
const MAX_REMEMBERED: usize = 64;
/// bcrypt looks at no more; longer passwords would be cut in silence.
const MAX_PASSWORD_BYTES: usize = 72;

/// The users of a file.
#[derive(Debug, Clone)]
pub(super) struct Users(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hashes: BTreeMap<String, String>,
    salt: [u8; 32],
    right: Mutex<Vec<[u8; 32]>>,
    turn: tokio::sync::Mutex<()>,
}

impl Users {
    /// Reads a file: one `user:hash` a line, hashes of bcrypt only.
    pub(super) fn open(path: &Path) -> Result<Self, AccessError> {
        let read = std::fs::read_to_string(path).map_err(|source| AccessError::Read { path: path.to_owned(), source })?;
        let text = Zeroizing::new(read);
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
        let users = lines.map(|(index, line)| {
            let user = line.trim().split_once(':').filter(|(user, hash)| !user.is_empty() && is_bcrypt(hash));
            let (user, hash) = user.ok_or_else(|| AccessError::User { path: path.to_owned(), line: index + 1 })?;
            Ok((user.to_owned(), hash.to_owned()))
        });
        let hashes: BTreeMap<_, _> = users.collect::<Result<_, AccessError>>()?;
        if hashes.is_empty() {
            return Err(AccessError::NoUsers { path: path.to_owned() });
        }
        let mut salt = [0; 32];
        OsRng.fill_bytes(&mut salt);
        Ok(Self(Arc::new(Inner { hashes, salt, right: Mutex::default(), turn: tokio::sync::Mutex::default() })))
    }

    /// Whether `password` is the user's.
    pub(super) async fn admits(&self, user: &str, password: &str) -> bool {
        if password.len() > MAX_PASSWORD_BYTES {
            return false;
        }
        let pair = self.pair(user, password);
        if self.remembered().contains(&pair) {
            return true;
        }
        // A user that is not there takes as long as one that is.
        let (hash, is_known) = match self.0.hashes.get(user) {
            Some(hash) => (hash.clone(), true),
            None => (self.0.hashes.values().next().cloned().unwrap_or_default(), false),
        };
        let password = Zeroizing::new(password.to_owned());
        let _turn = self.0.turn.lock().await;
        let compared = tokio::task::spawn_blocking(move || bcrypt::verify(password.as_bytes(), &hash).unwrap_or(false)).await;
        let is_right = compared.unwrap_or(false) && is_known;
        if is_right {
            let mut right = self.remembered();
            if right.len() >= MAX_REMEMBERED {
                right.clear();
            }
            right.push(pair);
        }
        is_right
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, Vec<[u8; 32]>> {
        self.0.right.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says nothing about the password to whoever does not know the salt.
    fn pair(&self, user: &str, password: &str) -> [u8; 32] {
        let length = u64::try_from(user.len()).unwrap_or(u64::MAX).to_be_bytes();
        Sha256::new().chain_update(self.0.salt).chain_update(length).chain_update(user).chain_update(password).finalize().into()
    }
}

fn is_bcrypt(hash: &str) -> bool {
    HashParts::from_str(hash).is_ok_and(|parts| parts.get_cost() <= MAX_COST)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    fn file() -> String {
        let line = |user: &str, password: &str| {
            let hash = bcrypt::hash_with_result(password, 4).unwrap().format_for_version(bcrypt::Version::TwoY);
            format!("{user}:{hash}\n")
        };
        format!("# operators\n{}\n{}", line("alice", "correct-horse"), line("bob", "battery-staple"))
    }

    fn open(text: &str) -> Result<Users, AccessError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("htpasswd");
        std::fs::write(&path, text).unwrap();
        Users::open(&path)
    }

    #[tokio::test]
    async fn each_user_has_one_password() {
        let users = open(&file()).unwrap();

        for (user, password, is_right) in [
            ("alice", "correct-horse", true),
            ("alice", "correct-horse", true),
            ("bob", "battery-staple", true),
            ("alice", "battery-staple", false),
            ("carol", "correct-horse", false),
            ("alice", "", false),
            ("", "correct-horse", false),
        ] {
            assert_eq!(users.admits(user, password).await, is_right, "{user} {password}");
        }
        assert_eq!(users.remembered().len(), 2);
    }

    #[tokio::test]
    async fn a_password_that_would_be_cut_is_refused() {
        let long = "x".repeat(72);
        let users = open(&format!("a:{}\n", bcrypt::hash(&long, 4).unwrap())).unwrap();

        assert!(users.admits("a", &long).await);
        assert!(!users.admits("a", &format!("{long}y")).await);
    }

    #[test]
    fn other_hashes_and_empty_files_let_nobody_in() {
        for line in ["a:plain", "a:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "a:$apr1$x$y", "no colon", ":$2y$04$", "a:$2y$31$abc"] {
            let text = format!("{}{line}\n", file());
            assert!(matches!(open(&text), Err(AccessError::User { line: 5, .. })), "{line}");
        }
        assert!(matches!(open("# nobody\n"), Err(AccessError::NoUsers { .. })));
    }
}
