//! The separated scheme: asked for by name, per instance, with the old and the new epoch inside the window.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic on purpose")]

mod testbed;

use dstack_api::kms::{AppId as AppIdMessage, AppKeyResponse, Empty, GetAppKeyRequest, KmsClient};
use dstack_guest::boot::received_keys::parse_keys;
use dstack_key_hierarchy::{EnvSecret, Epochs, K256Key, P256Key, Secret, is_signed_by, separated_app_key_digest, separated_env_key_digest};
use dstack_manifest::{InstanceId, KeyScheme};
use rand_core::OsRng;
use testbed::{Guest, Kms, Stack, now};

async fn keys(kms: &Kms, guest: &Guest, key_scheme: &str) -> AppKeyResponse {
    let request = GetAppKeyRequest { api_version: 1, key_scheme: key_scheme.into(), ..GetAppKeyRequest::default() };
    kms.connect(guest).await.get_app_key(&request).await.unwrap()
}

/// A stack whose KMS is between epochs 1 and 2.
async fn rotated() -> (Stack, Kms) {
    let stack = Stack::start().await;
    stack.kms().await.stop().await;
    let pem = std::fs::read_to_string(stack.path("kms/root-ca.key")).unwrap();
    let mut epochs = Epochs::first(&P256Key::from_pkcs8_pem(&pem).unwrap());
    epochs.rotate(&mut OsRng, now(), 0, 3600).unwrap();
    dstack_service::fs::write_atomic(stack.path("kms/epoch-seeds"), &epochs.encode(), 0o600).unwrap();
    let kms = stack.kms().await;
    (stack, kms)
}

#[tokio::test(flavor = "multi_thread")]
async fn existing_keys_stay_and_the_separated_ones_are_others() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let guest = stack.guest(1);

    let (mut plain, mut named, separated) =
        (keys(&kms, &guest, "").await, keys(&kms, &guest, "compatible").await, keys(&kms, &guest, "separated").await);

    // Each release has a proof of its own.
    (plain.release_proof, named.release_proof) = (String::new(), String::new());
    assert_eq!(plain, named);
    assert!(plain.epoch_keys.is_empty());
    assert_ne!(plain.disk_crypt_key, separated.disk_crypt_key);
    assert_ne!(plain.env_crypt_key, separated.env_crypt_key);
    assert_ne!(plain.k256_key, separated.k256_key);
    let [only] = separated.epoch_keys.as_slice() else { panic!("one epoch") };
    assert_eq!((only.epoch, only.is_current, only.readable_until), (1, true, 0));
    assert_eq!((&only.disk_crypt_key, &only.env_crypt_key), (&separated.disk_crypt_key, &separated.env_crypt_key));

    let request = GetAppKeyRequest { key_scheme: "other".into(), ..GetAppKeyRequest::default() };
    assert_eq!(kms.connect(&guest).await.get_app_key(&request).await.unwrap_err().code, "kms/key-scheme");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_separated_key_is_the_instances_own_and_vouched_for() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let (guest, mut other) = (stack.guest(1), stack.guest(1));
    other.instance_id = InstanceId::derive(&[9; 20], &other.app_id);

    let (one, two) = (keys(&kms, &guest, "separated").await, keys(&kms, &other, "separated").await);

    assert_ne!(one.disk_crypt_key, two.disk_crypt_key);
    assert_ne!(one.env_crypt_key, two.env_crypt_key);
    assert_ne!(one.k256_key, two.k256_key);
    let root = KmsClient(kms.anonymous()).get_meta(&Empty {}).await.unwrap().k256_pubkey.try_into().unwrap();
    let public_key = K256Key::from_scalar(&Secret::from_slice(&one.k256_key).unwrap()).unwrap().public_key();
    let signature = one.k256_signature.clone().try_into().unwrap();
    let holds = |instance| is_signed_by(&separated_app_key_digest(1, &guest.app_id, instance, &public_key), &signature, &root);
    assert!(holds(&guest.instance_id) && !holds(&other.instance_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn inside_the_window_an_app_sees_the_old_and_the_new_key() {
    let (stack, kms) = rotated().await;
    let guest = stack.guest(1);

    let answer = keys(&kms, &guest, "separated").await;

    let [old, new] = answer.epoch_keys.as_slice() else { panic!("two epochs") };
    assert_eq!((old.epoch, old.is_current, new.epoch, new.is_current), (1, false, 2, true));
    assert!(old.readable_until > now() && new.readable_until == 0);
    assert_ne!(old.disk_crypt_key, new.disk_crypt_key);
    assert_eq!(answer.disk_crypt_key, new.disk_crypt_key);
    let compatible = keys(&kms, &guest, "").await;
    assert_ne!(compatible.disk_crypt_key, new.disk_crypt_key, "the compatible scheme knows no epochs");
}

/// What a guest makes of the answer whose app demands separated keys.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_demands_separated_keys_gets_both_epochs_and_takes_no_others() {
    let (stack, kms) = rotated().await;
    let guest = stack.guest(1);
    let separated = keys(&kms, &guest, KeyScheme::Separated.wire_name()).await;
    let compatible = keys(&kms, &guest, KeyScheme::Compatible.wire_name()).await;

    let received = parse_keys(&separated, KeyScheme::Separated).unwrap();

    assert_eq!((received.epoch, received.older.iter().map(|older| older.epoch).collect::<Vec<_>>()), (2, vec![1]));
    assert_eq!(received.keys.disk_crypt_key.expose().as_slice(), separated.disk_crypt_key);
    assert!(parse_keys(&compatible, KeyScheme::Separated).is_err());
    assert_eq!(parse_keys(&compatible, KeyScheme::Compatible).unwrap().epoch, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_seal_to_the_instance_and_epoch_they_ask_for() {
    let (stack, kms) = rotated().await;
    let guest = stack.guest(1);
    let answer = keys(&kms, &guest, "separated").await;
    let anonymous = KmsClient(kms.anonymous());
    let root = anonymous.get_meta(&Empty {}).await.unwrap().k256_pubkey.try_into().unwrap();
    let request = |epoch| AppIdMessage {
        app_id: guest.app_id.as_bytes().to_vec(),
        key_scheme: "separated".into(),
        instance_id: guest.instance_id.as_bytes().to_vec(),
        epoch,
    };

    for (asked, index) in [(0, 1), (2, 1), (1, 0)] {
        let published = anonymous.get_app_env_encrypt_pub_key(&request(asked)).await.unwrap();

        let keys = &answer.epoch_keys[index];
        let secret = EnvSecret::new(Secret::from_slice(&keys.env_crypt_key).unwrap());
        assert_eq!((published.epoch, published.public_key.as_slice()), (keys.epoch, secret.public_key().as_slice()));
        let digest = separated_env_key_digest(keys.epoch, &guest.app_id, &guest.instance_id, published.timestamp, &secret.public_key());
        assert!(is_signed_by(&digest, &published.signature_v1.try_into().unwrap(), &root));
    }
    assert_eq!(anonymous.get_app_env_encrypt_pub_key(&request(3)).await.unwrap_err().code, "kms/epoch-not-readable");
    let wrong = AppIdMessage { instance_id: vec![1; 19], ..request(0) };
    assert_eq!(anonymous.get_app_env_encrypt_pub_key(&wrong).await.unwrap_err().code, "kms/instance-id");
}
