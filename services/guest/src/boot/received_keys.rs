//! The keys in a KMS's answer, whichever derivations they were asked for by.

use dstack_api::kms::{AppKeyResponse, EpochKeys};
use dstack_key_hierarchy::{AppKeys, EnvSecret, K256Key, Secret, SecretLengthError};
use dstack_manifest::KeyScheme;

use crate::kms_client::KmsAttemptError;

/// Keys of one epoch.
#[derive(Debug)]
pub struct EpochAppKeys {
    /// Its number, from 1.
    pub epoch: u32,
    /// The keys.
    pub keys: AppKeys,
}

/// Everything a KMS gave, as keys.
#[derive(Debug)]
pub struct ReceivedKeys {
    /// Those to use.
    pub keys: AppKeys,
    /// Their epoch; 0 where the scheme knows none.
    pub epoch: u32,
    /// Of earlier epochs, the latest first.
    pub older: Vec<EpochAppKeys>,
}

/// The keys in an answer to a request for keys of `scheme`.
///
/// Errors: keys that are none, or not of the scheme: a KMS that does not know it answers with others.
pub fn parse_keys(response: &AppKeyResponse, scheme: KeyScheme) -> Result<ReceivedKeys, KmsAttemptError> {
    let whole = KeyFields {
        disk_crypt_key: &response.disk_crypt_key,
        env_crypt_key: &response.env_crypt_key,
        k256_key: &response.k256_key,
        k256_signature: &response.k256_signature,
    };
    if scheme == KeyScheme::Compatible {
        return Ok(ReceivedKeys { keys: whole.parse()?, epoch: 0, older: Vec::new() });
    }
    let answer = |reason: &str| KmsAttemptError::Answer { reason: reason.to_owned() };
    let mut current = response.epoch_keys.iter().filter(|keys| keys.is_current);
    let (Some(current), None) = (current.next(), current.next()) else {
        return Err(answer("it has no separated keys of one current epoch; the app demands them"));
    };
    if KeyFields::of(current) != whole || current.epoch == 0 {
        return Err(answer("its keys are not those of its current epoch"));
    }
    let older = response.epoch_keys.iter().rev().filter(|keys| keys.epoch < current.epoch);
    let older = older.map(|keys| Ok(EpochAppKeys { epoch: keys.epoch, keys: KeyFields::of(keys).parse()? }));
    Ok(ReceivedKeys { keys: whole.parse()?, epoch: current.epoch, older: older.collect::<Result<_, KmsAttemptError>>()? })
}

/// One set of keys as it is sent.
#[derive(PartialEq, Eq)]
struct KeyFields<'a> {
    disk_crypt_key: &'a [u8],
    env_crypt_key: &'a [u8],
    k256_key: &'a [u8],
    k256_signature: &'a [u8],
}

impl<'a> KeyFields<'a> {
    fn of(keys: &'a EpochKeys) -> Self {
        let EpochKeys { disk_crypt_key, env_crypt_key, k256_key, k256_signature, .. } = keys;
        Self { disk_crypt_key, env_crypt_key, k256_key, k256_signature }
    }

    fn parse(&self) -> Result<AppKeys, KmsAttemptError> {
        let wrong = |field: &str| KmsAttemptError::Answer { reason: format!("{field} has the wrong form") };
        let secret = |field: &str, bytes: &[u8]| Secret::<32>::from_slice(bytes).map_err(|_: SecretLengthError| wrong(field));
        Ok(AppKeys {
            disk_crypt_key: secret("disk_crypt_key", self.disk_crypt_key)?,
            env_crypt_key: Some(EnvSecret::new(secret("env_crypt_key", self.env_crypt_key)?)),
            k256_key: K256Key::from_scalar(&secret("k256_key", self.k256_key)?).map_err(|_| wrong("k256_key"))?,
            k256_signature: Some(self.k256_signature.try_into().map_err(|_| wrong("k256_signature"))?),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    fn epoch(number: u32, is_current: bool) -> EpochKeys {
        let key = |kind: u8| vec![kind + u8::try_from(number).unwrap(); 32];
        EpochKeys {
            epoch: number,
            is_current,
            readable_until: 0,
            disk_crypt_key: key(1),
            env_crypt_key: key(2),
            k256_key: key(3),
            k256_signature: vec![4; 65],
        }
    }

    /// As a KMS answers whose current epoch is the last.
    fn answer(epochs: Vec<EpochKeys>) -> AppKeyResponse {
        let current = epochs.last().cloned().unwrap_or_else(|| epoch(0, true));
        AppKeyResponse {
            disk_crypt_key: current.disk_crypt_key,
            env_crypt_key: current.env_crypt_key,
            k256_key: current.k256_key,
            k256_signature: current.k256_signature,
            epoch_keys: epochs,
            ..AppKeyResponse::default()
        }
    }

    #[test]
    fn separated_keys_come_with_those_of_earlier_epochs_the_latest_first() {
        let received = parse_keys(&answer(vec![epoch(1, false), epoch(2, false), epoch(3, true)]), KeyScheme::Separated).unwrap();

        assert_eq!((received.epoch, received.keys.disk_crypt_key.expose()[0]), (3, 4));
        let older: Vec<_> = received.older.iter().map(|older| (older.epoch, older.keys.disk_crypt_key.expose()[0])).collect();
        assert_eq!(older, [(2, 3), (1, 2)]);
    }

    #[test]
    fn who_asks_for_separated_keys_takes_no_others() {
        let mixed = AppKeyResponse { disk_crypt_key: vec![9; 32], ..answer(vec![epoch(1, true)]) };
        for (what, answer) in [
            ("a KMS that does not know them", answer(vec![])),
            ("no current epoch", answer(vec![epoch(1, false)])),
            ("two current epochs", answer(vec![epoch(1, true), epoch(2, true)])),
            ("keys of no epoch", answer(vec![epoch(0, true)])),
            ("another disk key", mixed),
        ] {
            assert!(matches!(parse_keys(&answer, KeyScheme::Separated), Err(KmsAttemptError::Answer { .. })), "{what}");
        }
    }

    #[test]
    fn who_does_not_ask_is_not_concerned() {
        let received = parse_keys(&answer(vec![]), KeyScheme::Compatible).unwrap();

        assert_eq!((received.epoch, received.older.len()), (0, 0));
        let short = AppKeyResponse { k256_key: vec![1; 31], ..answer(vec![]) };
        assert!(parse_keys(&short, KeyScheme::Compatible).is_err());
    }
}
