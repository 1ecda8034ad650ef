//! The sealed environment: opened with the app's key, reduced to the names the app allows, kept in memory only.

use std::{io, path::Path};

use dstack_api::UserFacing;
use dstack_key_hierarchy::{EnvError, EnvSecret, EnvVar, encode_env, open_env};
use zeroize::Zeroizing;

use super::{host_share::write_private, layout::Layout};

/// Why there is no environment.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnvironmentError {
    /// It cannot be opened or is malformed.
    #[error("open the sealed environment")]
    Open(#[from] EnvError),
    /// Nobody could have sealed one.
    #[error("there is a sealed environment, and the key provider {provider} has no key for it")]
    NoKey {
        /// The provider.
        provider: String,
    },
    /// It cannot be written.
    #[error("store the environment")]
    Store(#[source] io::Error),
}

impl UserFacing for EnvironmentError {
    fn code(&self) -> &'static str {
        match self {
            Self::Open(_) => "guest/env-refused",
            Self::NoKey { .. } => "guest/env-without-key",
            Self::Store(_) => "guest/storage",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Open(_) => "seal the variables again for this app and KMS: dstack deploy with -e",
            Self::NoKey { .. } => "use the key provider kms, or deploy without secrets",
            Self::Store(_) => "give the VM more memory",
        }
        .to_owned()
    }
}

/// The variables the application gets. Erased on drop.
#[derive(Debug, Default)]
pub struct Environment {
    vars: Vec<EnvVar>,
    /// Names that were sealed but are not allowed.
    pub skipped: Vec<String>,
}

impl Environment {
    /// Opens what the host delivered. `sealed`: untrusted. `keys`: that it may be sealed to, the current one first.
    ///
    /// Errors: it cannot be opened; an application never starts with an empty environment instead.
    pub fn open(sealed: Option<&[u8]>, keys: &[&EnvSecret], allowed: &[String], provider: &str) -> Result<Self, EnvironmentError> {
        let Some(sealed) = sealed else { return Ok(Self::default()) };
        let (current, older) = keys.split_first().ok_or_else(|| EnvironmentError::NoKey { provider: provider.to_owned() })?;
        let opened = match open_env(current, sealed, allowed) {
            Ok(opened) => opened,
            Err(error) => older.iter().find_map(|key| open_env(key, sealed, allowed).ok()).ok_or(error)?,
        };
        Ok(Self { vars: opened.vars, skipped: opened.skipped })
    }

    /// The variables.
    #[must_use]
    pub fn vars(&self) -> &[EnvVar] {
        &self.vars
    }

    /// As an environment file: what systemd and a sourcing shell both read back unchanged.
    #[must_use]
    pub fn file(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::new());
        for var in &self.vars {
            text.push_str(&var.key);
            text.push_str("=\"");
            for c in var.value.chars() {
                if matches!(c, '\\' | '"' | '$' | '`') {
                    text.push('\\');
                }
                text.push(c);
            }
            text.push_str("\"\n");
        }
        text
    }

    /// Writes the two files that scripts may read; root only.
    ///
    /// Errors: they cannot be written.
    pub fn store(&self, layout: &Layout) -> Result<(), EnvironmentError> {
        let write = |path: &Path, bytes: &[u8]| write_private(path, bytes).map_err(EnvironmentError::Store);
        write(&layout.environment_file(), self.file().as_bytes())?;
        write(&layout.environment_json(), &encode_env(&self.vars)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use std::process::Command;

    use dstack_key_hierarchy::{Secret, seal_env};
    use rand_core::OsRng;

    use super::*;

    fn var(key: &str, value: &str) -> EnvVar {
        EnvVar { key: key.to_owned(), value: Zeroizing::new(value.to_owned()) }
    }

    #[test]
    fn a_shell_reads_every_value_back_unchanged() {
        let values = ["plain", "a b", "\\", "ends in \\", "\"q\"", "$HOME `id` $(id)", "two\nlines", "\\n", "'", "ünï", ""];
        let vars = values.iter().enumerate().map(|(index, value)| var(&format!("V{index}"), value)).collect();
        let environment = Environment { vars, skipped: Vec::new() };
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("env"), environment.file().as_bytes()).unwrap();

        let script = "set -a; . ./env; for i in 0 1 2 3 4 5 6 7 8 9 10; do eval printf '%s\\\\0' \\\"\\$V$i\\\"; done";
        let output = Command::new("sh").arg("-c").arg(script).current_dir(directory.path()).output().unwrap();

        let read: Vec<&str> = std::str::from_utf8(&output.stdout).unwrap().split_terminator('\0').collect();
        assert_eq!(read, values);
    }

    #[test]
    fn names_that_are_not_allowed_are_left_out() {
        let secret = EnvSecret::new(Secret::new([7; 32]));
        let sealed = seal_env(&secret.public_key(), &[var("GOOD", "1"), var("LD_PRELOAD", "/evil")], &mut OsRng).unwrap();

        let environment = Environment::open(Some(&sealed), &[&secret], &["GOOD".to_owned()], "kms").unwrap();

        assert_eq!(&*environment.file(), "GOOD=\"1\"\n");
        assert_eq!(environment.skipped, ["LD_PRELOAD"]);
    }

    #[test]
    fn what_was_sealed_in_an_earlier_epoch_is_opened() {
        let (new, old, other) =
            (EnvSecret::new(Secret::new([7; 32])), EnvSecret::new(Secret::new([8; 32])), EnvSecret::new(Secret::new([9; 32])));
        let sealed = seal_env(&old.public_key(), &[var("A", "1")], &mut OsRng).unwrap();

        let environment = Environment::open(Some(&sealed), &[&new, &old], &["A".to_owned()], "kms").unwrap();

        assert_eq!(&*environment.file(), "A=\"1\"\n");
        assert!(matches!(Environment::open(Some(&sealed), &[&new, &other], &[], "kms"), Err(EnvironmentError::Open(_))));
    }

    #[test]
    fn what_cannot_be_opened_is_an_error_and_not_an_empty_environment() {
        let secret = EnvSecret::new(Secret::new([7; 32]));

        assert!(matches!(Environment::open(Some(&[0; 100]), &[&secret], &[], "kms"), Err(EnvironmentError::Open(_))));
        assert!(matches!(Environment::open(Some(&[0; 100]), &[], &[], "none"), Err(EnvironmentError::NoKey { .. })));
        assert!(Environment::open(None, &[], &[], "none").unwrap().vars().is_empty());
    }
}
