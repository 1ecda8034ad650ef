//! Every derivation, signature and sealed environment against values that other implementations made.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests panic on purpose")]

use dstack_key_hierarchy::*;
use dstack_manifest::{AppId, InstanceId};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

fn must_load(name: &str) -> Value {
    let path = format!("{}/testdata/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn bytes(value: &Value, field: &str) -> Vec<u8> {
    hex::decode(value[field].as_str().unwrap_or_else(|| panic!("{field}"))).unwrap()
}

fn fixed<const N: usize>(value: &Value, field: &str) -> [u8; N] {
    bytes(value, field).try_into().unwrap()
}

fn secret(value: &Value, field: &str) -> Secret<32> {
    Secret::new(fixed(value, field))
}

fn app_id(value: &Value) -> AppId {
    AppId::new(fixed(value, "app_id"))
}

fn with_id(id: &str) -> Value {
    let vectors = must_load("kms_vectors.json");
    vectors.as_array().unwrap().iter().find(|v| v["id"] == id).unwrap_or_else(|| panic!("no vector {id}")).clone()
}

fn simulator_keys() -> AppKeys {
    let keys = must_load("simulator-appkeys.json");
    AppKeys {
        disk_crypt_key: secret(&keys, "disk_crypt_key"),
        env_crypt_key: Some(EnvSecret::new(secret(&keys, "env_crypt_key"))),
        k256_key: K256Key::from_scalar(&secret(&keys, "k256_key")).unwrap(),
        k256_signature: Some(fixed(&keys, "k256_signature")),
    }
}

#[test]
fn app_key_signature_recovers_to_the_published_kms_key() {
    let v = with_id("kms-issued-signature");
    let key = K256Key::from_scalar(&secret(&v, "app_private_key")).unwrap();

    assert_eq!(key.public_key(), fixed::<33>(&v, "app_public_key"));
    assert!(verify_app_key(&app_id(&v), &key.public_key(), &bytes(&v, "signature"), &fixed(&v, "kms_public_key")));
}

#[test]
fn app_key_signature_does_not_hold_for_another_app() {
    let v = with_id("kms-issued-signature-wrong-app");

    assert!(!verify_app_key(&app_id(&v), &fixed(&v, "app_public_key"), &bytes(&v, "signature"), &fixed(&v, "kms_public_key")));
}

#[test]
fn legacy_env_key_signature_verifies() {
    let v = with_id("env-pubkey-legacy");

    assert_eq!(verify_env_key(&app_id(&v), &fixed(&v, "public_key"), &bytes(&v, "signature"), &fixed(&v, "signer")), Ok(()));

    let mut other = bytes(&v, "signature");
    other[10] ^= 1;
    assert_eq!(verify_env_key(&app_id(&v), &fixed(&v, "public_key"), &other, &fixed(&v, "signer")), Err(VerifyEnvKeyError::Signer));
}

#[test]
fn dh_secret_and_its_intermediate_values_match() {
    let v = with_id("dh-secret");
    let der = bytes(&v, "root_pkcs8_der");
    let root = Secret::<32>::from_slice(&der[36..68]).unwrap();
    let context: Vec<&[u8]> = v["context"].as_array().unwrap().iter().map(|c| c.as_str().unwrap().as_bytes()).collect();

    assert_eq!(P256Key::from_scalar(&root).unwrap().to_pkcs8_der().unwrap().as_slice(), der);
    assert_eq!(derive_key(&root, &context), secret(&v, "hkdf_output"));
    assert_eq!(derive_p256(&root, &context).unwrap().to_pkcs8_der().unwrap().as_slice(), bytes(&v, "child_pkcs8_der"));
    assert_eq!(derive_dh_secret(&root, &context).unwrap(), secret(&v, "secret"));
}

#[test]
fn kms_derives_the_app_k256_key() {
    let v = with_id("kms-app-k256");
    let root =
        RootKeys { ca: P256Key::from_scalar(&Secret::new([1; 32])).unwrap(), k256: K256Key::from_scalar(&secret(&v, "root")).unwrap() };

    let key = root.app_k256_key(&app_id(&v)).unwrap();
    let signature = root.sign_app_key(&app_id(&v), &key).unwrap();

    assert_eq!(key.scalar(), secret(&v, "key"));
    assert!(verify_app_key(&app_id(&v), &key.public_key(), &signature, &root.k256.public_key()));
}

#[test]
fn path_keys_match_for_both_algorithms() {
    for id in ["app-path-k256:", "app-path-k256:a"] {
        let v = with_id(id);
        let path = v["path"].as_str().unwrap();
        let keys = simulator_keys();

        let secp = keys.path_key(path, "", PathKeyAlgorithm::Secp256k1).unwrap();
        let ed = keys.path_key(path, "", PathKeyAlgorithm::Ed25519).unwrap();

        assert_eq!(secp.key(), &secret(&v, "key"));
        assert_eq!(ed.key(), secp.key());
        assert_eq!(secp.public_key(), bytes(&v, "public_key"));
        assert_eq!(ed.public_key(), bytes(&v, "ed25519_public"));
    }
}

#[test]
fn path_key_chain_matches_byte_for_byte() {
    let keys = simulator_keys();

    let key = keys.path_key("test", "signing", PathKeyAlgorithm::Secp256k1).unwrap();

    assert_eq!(hex::encode(key.key().expose()), "133e8ca6e532ead3e38f00347408771da296e9c70e8e3e362f485154e64ef4e8");
    assert_eq!(hex::encode(key.public_key()), "02c53a10a891f3c5d599539056edcfa080555ac975cae78e59b5d519dcdaf03389");
    assert_eq!(
        hex::encode(&key.signature_chain()[0]),
        "c2ac442934a10d730c14b553e6b93e4db61aa7afa48b7aa51e649841115d6f4160a29b24a87e0ef4c02e37c10b176913f1449ebb41466fccdc44a6ef5d9b247300"
    );
    assert_eq!(key.signature_chain()[1], bytes(&must_load("simulator-appkeys.json"), "k256_signature"));
}

#[test]
fn local_provider_keys_come_from_the_seed() {
    let mut seed = [0; 32];
    for (value, byte) in (0_u8..).zip(seed.iter_mut()) {
        *byte = value;
    }

    let local = LocalAppKeys::from_seed(&Secret::new(seed)).unwrap();

    assert_eq!(local.keys.disk_crypt_key.to_hex().as_str(), "16271dff935a2b916181f4c8a0a6666de98224ba51437c329171a11dd481a09a");
    assert_eq!(local.keys.k256_key.scalar().to_hex().as_str(), "091c9c36eb873f1aacde93e91631256e1610ce9940166b45f437d635d76ba95e");
    assert_eq!(local.ca_key.scalar().to_hex().as_str(), "0a6ae75425993b828ace490021809dcda469d5b531b018a27fdd28cd6d81115e");
    assert!(local.keys.env_crypt_key.is_none());
    assert!(local.keys.k256_signature.is_none());
    assert!(local.keys.path_key("", "", PathKeyAlgorithm::Secp256k1).unwrap().signature_chain()[1].is_empty());
}

#[test]
fn opens_what_other_sdks_sealed() {
    let vectors = must_load("env_encryption.json");
    for v in vectors["positive"].as_array().unwrap() {
        let id = v["id"].as_str().unwrap();
        let env = EnvSecret::new(secret(v, "secret_key"));
        let expected: Value = serde_json::from_str(v["plaintext"].as_str().unwrap()).unwrap();
        let expected = expected["env"].as_array().unwrap();
        let names: Vec<String> = expected.iter().map(|var| var["key"].as_str().unwrap().to_owned()).collect();

        let opened = open_env(&env, &bytes(v, "ciphertext"), &names).unwrap_or_else(|error| panic!("{id}: {error}"));

        assert_eq!(hex::encode(Sha256::digest(v["plaintext"].as_str().unwrap())), v["plaintext_sha256"].as_str().unwrap(), "{id}");
        assert_eq!(env.public_key().to_vec(), bytes(v, "public_key"), "{id}");
        assert_eq!(opened.vars.len(), expected.len(), "{id}");
        for (var, wanted) in opened.vars.iter().zip(expected) {
            assert_eq!(
                (var.key.as_str(), var.value.as_str()),
                (wanted["key"].as_str().unwrap(), wanted["value"].as_str().unwrap()),
                "{id}"
            );
        }
    }
}

#[test]
fn refuses_damaged_environments() {
    let vectors = must_load("env_encryption.json");
    let negative = vectors["negative"].as_array().unwrap();
    assert!(!negative.is_empty());
    for v in negative {
        let opened = open_env(&EnvSecret::new(secret(v, "secret_key")), &bytes(v, "ciphertext"), &[]);

        assert!(opened.is_err(), "{}", v["id"]);
    }
}

#[test]
fn disk_key_is_per_instance_and_all_others_per_app() {
    let root =
        RootKeys { ca: P256Key::from_scalar(&Secret::new([3; 32])).unwrap(), k256: K256Key::from_scalar(&Secret::new([4; 32])).unwrap() };
    let app = AppId::new([5; 20]);
    let (one, two) = (InstanceId::derive(&[1; 20], &app), InstanceId::derive(&[2; 20], &app));
    let other = AppId::new([6; 20]);

    assert_ne!(root.disk_key(&app, &one).unwrap(), root.disk_key(&app, &two).unwrap());
    assert_ne!(root.env_key(&app).unwrap(), root.env_key(&other).unwrap());
    assert_ne!(root.app_k256_key(&app).unwrap().scalar(), root.app_k256_key(&other).unwrap().scalar());
}

/// The example of SPEC.md §6, so that the text stays true.
#[test]
fn worked_example_of_the_specification() {
    let root = RootKeys {
        ca: P256Key::from_scalar(&Secret::new([0x11; 32])).unwrap(),
        k256: K256Key::from_scalar(&Secret::new([0x11; 32])).unwrap(),
    };
    let app: AppId = "5bb4ff9a3837357f19dc176407a5709c62eb6c56".parse().unwrap();
    let instance: InstanceId = "00112233445566778899aabbccddeeff00112233".parse().unwrap();
    let (env, k256) = (root.env_key(&app).unwrap(), root.app_k256_key(&app).unwrap());
    let lines = [
        ("app CA scalar", root.app_ca_key(&app).unwrap().scalar().to_hex().to_string()),
        ("disk key", root.disk_key(&app, &instance).unwrap().to_hex().to_string()),
        ("disk key, no instance id", root.disk_key(&app, &InstanceId::NONE).unwrap().to_hex().to_string()),
        ("env key", env.secret().to_hex().to_string()),
        ("env public key", hex::encode(env.public_key())),
        ("app k256 key", k256.scalar().to_hex().to_string()),
        ("app k256 public key", hex::encode(k256.public_key())),
        ("k256 signature", hex::encode(root.sign_app_key(&app, &k256).unwrap())),
        ("env signature", hex::encode(root.sign_env_key(&app, &env.public_key()).unwrap())),
        ("env signature_v1", hex::encode(root.sign_env_key_v1(&app, 1_700_000_000, &env.public_key()).unwrap())),
    ];

    let spec = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/SPEC.md")).unwrap();
    for (name, value) in lines {
        assert!(spec.lines().any(|line| line == format!("{name:<26}{value}")), "SPEC.md lacks: {name:<26}{value}");
    }
}

/// `testdata/separated.json`: computed without this crate.
#[test]
fn separated_keys_match_an_independent_computation() {
    let vectors = must_load("separated.json");
    for v in vectors["keys"].as_array().unwrap() {
        let instance = bytes(v, "instance_id");
        let instance = if instance.is_empty() { InstanceId::NONE } else { InstanceId::try_from(instance.as_slice()).unwrap() };
        let epoch = v["epoch"].as_u64().unwrap().try_into().unwrap();

        let keys = SeparatedKeys::derive(&secret(v, "seed"), epoch, &app_id(v), &instance).unwrap();

        assert_eq!(keys.disk_crypt_key, secret(v, "disk"));
        assert_eq!(keys.env_crypt_key.secret(), &secret(v, "environment"));
        assert_eq!(keys.k256_key.scalar(), secret(v, "application"));
    }
    let first = &vectors["first_epoch"];
    let root = P256Key::from_scalar(&secret(first, "root")).unwrap();
    assert_eq!(Epochs::first(&root).all()[0].seed, secret(first, "seed"));
}

#[test]
fn each_part_of_a_label_separates() {
    let (app, other_app) = (AppId::new([5; 20]), AppId::new([6; 20]));
    let (one, two) = (InstanceId::derive(&[1; 20], &app), InstanceId::derive(&[2; 20], &app));
    let base = KeyLabel { algorithm: KeyAlgorithm::Symmetric, purpose: "disk", epoch: 1, app_id: &app, instance_id: &one };
    let seed = Secret::new([3; 32]);
    let others = [
        KeyLabel { algorithm: KeyAlgorithm::Ed25519, ..base },
        KeyLabel { purpose: "disk2", ..base },
        KeyLabel { epoch: 2, ..base },
        KeyLabel { app_id: &other_app, ..base },
        KeyLabel { instance_id: &two, ..base },
        KeyLabel { instance_id: &InstanceId::NONE, ..base },
    ];
    for other in others {
        assert_ne!(base.key(&seed), other.key(&seed), "{other:?}");
    }
    assert_ne!(base.key(&seed), base.key(&Secret::new([4; 32])));
}

#[test]
fn a_separated_signature_holds_for_its_epoch_app_and_instance_only() {
    let kms = K256Key::from_scalar(&Secret::new([7; 32])).unwrap();
    let app = AppId::new([5; 20]);
    let instance = InstanceId::derive(&[1; 20], &app);
    let public_key = [2; 33];
    let signature = kms.sign_digest(&separated_app_key_digest(1, &app, &instance, &public_key)).unwrap();
    let holds = |digest: [u8; 32]| is_signed_by(&digest, &signature, &kms.public_key());

    assert!(holds(separated_app_key_digest(1, &app, &instance, &public_key)));
    assert!(!holds(separated_app_key_digest(2, &app, &instance, &public_key)));
    assert!(!holds(separated_app_key_digest(1, &AppId::new([6; 20]), &instance, &public_key)));
    assert!(!holds(separated_app_key_digest(1, &app, &InstanceId::NONE, &public_key)));
    assert!(!holds(separated_app_key_digest(1, &app, &instance, &[3; 33])));
    assert_ne!(separated_env_key_digest(1, &app, &instance, 5, &[1; 32]), separated_env_key_digest(1, &app, &instance, 6, &[1; 32]));
}
