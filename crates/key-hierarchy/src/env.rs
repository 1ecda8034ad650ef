//! The sealed environment: an owner encrypts variables to an app's key, only the app's measured code opens them.

use std::{collections::BTreeSet, fmt};

use aes_gcm::{
    Aes256Gcm, KeyInit as _,
    aead::{Aead as _, generic_array::GenericArray},
};
use rand_core::CryptoRngCore;
use serde::{Deserialize, Serialize};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::Secret;

/// Most variables in one environment.
pub const MAX_ENV_ITEMS: usize = 1024;
/// Longest name.
pub const MAX_ENV_KEY_BYTES: usize = 255;
/// Longest value.
pub const MAX_ENV_VALUE_BYTES: usize = 128 * 1024;
/// Largest plaintext.
pub const MAX_ENV_BYTES: usize = 1024 * 1024;
/// Bytes before the ciphertext: ephemeral public key and nonce.
const HEAD_BYTES: usize = 32 + 12;
const TAG_BYTES: usize = 16;
/// Largest sealed environment; the host share's own limit may be lower.
pub const MAX_SEALED_ENV_BYTES: usize = HEAD_BYTES + MAX_ENV_BYTES + TAG_BYTES;

/// X25519 public key of an app's environment; 32 bytes.
pub type EnvPublicKey = [u8; 32];

/// X25519 secret of an app's environment.
#[derive(Debug, PartialEq, Eq)]
pub struct EnvSecret(Secret<32>);

impl EnvSecret {
    /// Wraps the bytes as derived; clamping happens in use.
    #[must_use]
    pub fn new(secret: Secret<32>) -> Self {
        Self(secret)
    }

    /// The unclamped bytes, as the KMS hands them out.
    #[must_use]
    pub fn secret(&self) -> &Secret<32> {
        &self.0
    }

    /// What owners seal to.
    #[must_use]
    pub fn public_key(&self) -> EnvPublicKey {
        PublicKey::from(&StaticSecret::from(*self.0.expose())).to_bytes()
    }
}

/// One variable. Its value is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct EnvVar {
    /// Name, `[A-Za-z_][A-Za-z0-9_]*`.
    pub key: String,
    /// Value; any text without NUL.
    pub value: Zeroizing<String>,
}

impl EnvVar {
    /// A variable; checked when it is sealed.
    #[must_use]
    pub fn new(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { key: key.into(), value: Zeroizing::new(value.into()) }
    }
}

impl fmt::Debug for EnvVar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EnvVar({}=..)", self.key)
    }
}

/// Why an environment cannot be sealed or opened. No variant carries a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvError {
    /// Too short, or longer than [`MAX_SEALED_ENV_BYTES`].
    #[error("sealed environment of {got} bytes; {min} to {MAX_SEALED_ENV_BYTES} are possible", min = HEAD_BYTES + TAG_BYTES)]
    SealedSize {
        /// Its size.
        got: usize,
    },
    /// A public key of small order, which would make the shared secret public.
    #[error("the public key does not contribute to the shared secret")]
    WeakPublicKey,
    /// Sealed to another key, or changed.
    #[error("the sealed environment does not open: it was made for another key, or changed")]
    Authentication,
    /// The plaintext is not the document expected. The position only; the text is secret.
    #[error("environment document at line {line} column {column} is not {{\"env\":[{{\"key\",\"value\"}}]}}")]
    Syntax {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// More than [`MAX_ENV_ITEMS`].
    #[error("{got} variables, at most {MAX_ENV_ITEMS} are allowed")]
    TooMany {
        /// How many.
        got: usize,
    },
    /// More than [`MAX_ENV_BYTES`].
    #[error("environment of {got} bytes, at most {MAX_ENV_BYTES} are allowed")]
    TooLarge {
        /// Its size.
        got: usize,
    },
    /// A name outside the grammar or too long.
    #[error("variable {position} has a name that is not [A-Za-z_][A-Za-z0-9_]* of at most {MAX_ENV_KEY_BYTES} bytes")]
    Name {
        /// From 1.
        position: usize,
    },
    /// A value that is too long or holds NUL.
    #[error("value of {key} is longer than {MAX_ENV_VALUE_BYTES} bytes or holds a NUL")]
    Value {
        /// The variable's name.
        key: String,
    },
    /// Two variables of one name: which one wins would be a guess.
    #[error("variable {key} appears twice")]
    Duplicate {
        /// The name.
        key: String,
    },
}

/// What an opened environment holds after the filter.
#[derive(Debug, PartialEq, Eq)]
pub struct OpenedEnv {
    /// Variables the app's measured document allows, in their order.
    pub vars: Vec<EnvVar>,
    /// Names that were dropped because the document does not allow them.
    pub skipped: Vec<String>,
}

#[derive(Deserialize)]
struct Document {
    env: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    key: String,
    value: Zeroizing<String>,
}

#[derive(Serialize)]
struct DocumentRef<'a> {
    env: Vec<ItemRef<'a>>,
}

#[derive(Serialize)]
struct ItemRef<'a> {
    key: &'a str,
    value: &'a str,
}

/// Whether `name` can be a variable's name.
#[must_use]
pub fn is_valid_env_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let starts = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    starts && name.len() <= MAX_ENV_KEY_BYTES && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The plaintext document of `vars`.
///
/// Errors: a limit is exceeded, a name is invalid or appears twice.
pub fn encode_env(vars: &[EnvVar]) -> Result<Zeroizing<Vec<u8>>, EnvError> {
    check(vars)?;
    let document = DocumentRef { env: vars.iter().map(|var| ItemRef { key: &var.key, value: &var.value }).collect() };
    let text = Zeroizing::new(serde_json::to_vec(&document).map_err(|_| EnvError::Syntax { line: 0, column: 0 })?);
    if text.len() > MAX_ENV_BYTES {
        return Err(EnvError::TooLarge { got: text.len() });
    }
    Ok(text)
}

/// Seals `vars` so that only the holder of the secret of `recipient` reads them. Source: SPEC.md §5.
///
/// `recipient`: verified by the caller, see [`crate::verify_env_key_v1`].
///
/// Errors: as [`encode_env`]; a recipient key of small order.
pub fn seal_env(recipient: &EnvPublicKey, vars: &[EnvVar], rng: &mut impl CryptoRngCore) -> Result<Vec<u8>, EnvError> {
    let plaintext = encode_env(vars)?;
    let ephemeral = Secret::<32>::generate(rng);
    let mut nonce = [0; 12];
    rng.fill_bytes(&mut nonce);
    seal_bytes(recipient, &plaintext, &ephemeral, &nonce)
}

fn seal_bytes(recipient: &EnvPublicKey, plaintext: &[u8], ephemeral: &Secret<32>, nonce: &[u8; 12]) -> Result<Vec<u8>, EnvError> {
    let ephemeral = StaticSecret::from(*ephemeral.expose());
    let cipher = cipher(&ephemeral, recipient)?;
    let ciphertext = cipher.encrypt(GenericArray::from_slice(nonce), plaintext).map_err(|_| EnvError::Authentication)?;
    let mut sealed = PublicKey::from(&ephemeral).to_bytes().to_vec();
    sealed.extend_from_slice(nonce);
    sealed.extend_from_slice(&ciphertext);
    Ok(sealed)
}

/// Opens a sealed environment and keeps what `allowed` names. Source: SPEC.md §5.
///
/// `sealed`: from the host, untrusted; anyone can seal to the public key, so the variables are the owner's only as far as
/// `allowed`, which is measured, makes them harmless.
///
/// Errors: see [`EnvError`]; a limit is checked on every variable, allowed or not.
pub fn open_env(secret: &EnvSecret, sealed: &[u8], allowed: &[String]) -> Result<OpenedEnv, EnvError> {
    parse(&open_bytes(secret, sealed)?, allowed)
}

fn open_bytes(secret: &EnvSecret, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, EnvError> {
    let size = EnvError::SealedSize { got: sealed.len() };
    if sealed.len() < HEAD_BYTES + TAG_BYTES || sealed.len() > MAX_SEALED_ENV_BYTES {
        return Err(size);
    }
    let Some((ephemeral, rest)) = sealed.split_first_chunk::<32>() else { return Err(size) };
    let Some((nonce, ciphertext)) = rest.split_first_chunk::<12>() else { return Err(size) };
    let cipher = cipher(&StaticSecret::from(*secret.0.expose()), ephemeral)?;
    let plaintext = cipher.decrypt(GenericArray::from_slice(nonce), ciphertext).map_err(|_| EnvError::Authentication)?;
    Ok(Zeroizing::new(plaintext))
}

/// The key is the raw X25519 output: deployed clients derive nothing from it.
fn cipher(secret: &StaticSecret, peer: &[u8; 32]) -> Result<Aes256Gcm, EnvError> {
    let shared = secret.diffie_hellman(&PublicKey::from(*peer));
    if !shared.was_contributory() {
        return Err(EnvError::WeakPublicKey);
    }
    Ok(Aes256Gcm::new(GenericArray::from_slice(shared.as_bytes())))
}

fn parse(plaintext: &[u8], allowed: &[String]) -> Result<OpenedEnv, EnvError> {
    if plaintext.len() > MAX_ENV_BYTES {
        return Err(EnvError::TooLarge { got: plaintext.len() });
    }
    let document: Document =
        serde_json::from_slice(plaintext).map_err(|error| EnvError::Syntax { line: error.line(), column: error.column() })?;
    let vars: Vec<EnvVar> = document.env.into_iter().map(|item| EnvVar { key: item.key, value: item.value }).collect();
    check(&vars)?;
    let (vars, skipped): (Vec<_>, Vec<_>) = vars.into_iter().partition(|var| allowed.contains(&var.key));
    Ok(OpenedEnv { vars, skipped: skipped.into_iter().map(|var| var.key).collect() })
}

fn check(vars: &[EnvVar]) -> Result<(), EnvError> {
    if vars.len() > MAX_ENV_ITEMS {
        return Err(EnvError::TooMany { got: vars.len() });
    }
    let mut seen = BTreeSet::new();
    for (index, var) in vars.iter().enumerate() {
        if !is_valid_env_name(&var.key) {
            return Err(EnvError::Name { position: index + 1 });
        }
        if var.value.len() > MAX_ENV_VALUE_BYTES || var.value.contains('\0') {
            return Err(EnvError::Value { key: var.key.clone() });
        }
        if !seen.insert(var.key.as_str()) {
            return Err(EnvError::Duplicate { key: var.key.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
