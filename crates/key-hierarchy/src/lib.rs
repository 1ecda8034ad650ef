//! The derivation tree, signature chains and the sealed environment.
//!
//! Byte layouts and worked vectors are in `SPEC.md`. Nothing here reads a clock or makes randomness: both are arguments.
//! Every secret is a [`Secret`] or a type around one: erased on drop, never printed, never copied by accident.

mod app_keys;
mod ec;
mod env;
mod epochs;
mod kdf;
mod path_key;
mod recovery;
mod root;
mod secret;
mod separated;
mod signature;

pub use app_keys::{AppKeys, LocalAppKeys};
pub use ec::{InvalidKey, K256Key, P256Key};
pub use env::{
    EnvError, EnvPublicKey, EnvSecret, EnvVar, MAX_ENV_BYTES, MAX_ENV_ITEMS, MAX_ENV_KEY_BYTES, MAX_ENV_VALUE_BYTES, MAX_SEALED_ENV_BYTES,
    OpenedEnv, encode_env, is_valid_env_name, open_env, seal_env,
};
pub use epochs::{Epoch, EpochError, Epochs, MAX_EPOCHS};
pub use kdf::{derive_dh_secret, derive_key, derive_p256};
pub use path_key::{PathKey, PathKeyAlgorithm, SIGNING_PATH, SIGNING_PURPOSE, SignatureError, UnknownAlgorithm, verify_message};
pub use recovery::{
    Custodian, MAX_CUSTODIANS, RecoveredRoot, RecoveryError, RecoveryShare, SHARE_BYTES, ShareFile, ShareSet, SignedSet,
    recovery_session_digest,
};
pub use root::RootKeys;
pub use secret::{Secret, SecretLengthError};
pub use separated::{KeyAlgorithm, KeyLabel, SeparatedKeys, is_signed_by, separated_app_key_digest, separated_env_key_digest};
pub use signature::{
    ENV_KEY_MAX_AGE_SECONDS, ENV_KEY_MAX_SKEW_SECONDS, RecoverableSignature, VerifyEnvKeyError, app_key_digest, env_key_digest,
    env_key_digest_v1, log_key_digest, recover, verify_app_key, verify_env_key, verify_env_key_v1,
};
