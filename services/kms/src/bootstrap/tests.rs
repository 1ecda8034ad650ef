#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::os::unix::fs::PermissionsExt as _;

use dstack_api::UserFacing as _;

use dstack_attester::AttesterError;
use dstack_key_hierarchy::Secret;

use super::*;
use crate::sealing::Kind;

const NOW: u64 = 1_800_000_000;
const TEN_YEARS: u64 = Validity::TEN_YEARS;

fn site<T>(dir: &Path, vault: &Vault, attest: &Attest<'_>, now: u64, run: impl FnOnce(&Site<'_>) -> T) -> T {
    run(&Site { dir, vault, domain: &"kms.test".parse().unwrap(), attest, now })
}

fn open(dir: &Path, now: u64) -> Result<KeyStore, KeyStoreError> {
    site(dir, &Vault::plain(), &|_| Ok(None), now, |site| site.load_or_create())
}

fn must_fail(dir: &Path) -> KeyStoreError {
    match open(dir, NOW) {
        Ok(_) => panic!("was accepted"),
        Err(error) => error,
    }
}

fn root() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("state/kms");
    (directory, dir)
}

/// Started under a clock ten years ahead, which renewed the certificates, and then under the right one.
#[test]
fn authorities_made_under_a_wrong_clock_are_renewed_with_the_same_keys() {
    let (_directory, dir) = root();
    let first = open(&dir, NOW).unwrap();
    for wrong in [NOW + TEN_YEARS, NOW - TEN_YEARS] {
        open(&dir, wrong).unwrap();

        let store = open(&dir, NOW).unwrap();

        for (authority, before) in [(&store.root, &first.root), (&store.temp, &first.temp)] {
            dstack_ra_tls::RaTlsCertificate::parse(authority.certificate_der()).unwrap().check_dates(NOW).unwrap();
            assert_eq!(authority.spki_der(), before.spki_der());
        }
    }
}

#[test]
fn the_first_start_makes_all_files_with_narrow_permissions() {
    let (_directory, dir) = root();

    open(&dir, NOW).unwrap();

    let mut names: Vec<String> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "bootstrap-info.json",
            "root-ca.crt",
            "root-ca.key",
            "root-k256.key",
            "rpc-domain",
            "rpc.crt",
            "rpc.key",
            "tmp-ca.crt",
            "tmp-ca.key"
        ]
    );
    for name in names {
        assert_eq!(fs::metadata(dir.join(&name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(dir.join(K256_KEY)).unwrap().len(), 32);
    assert!(!staging_of(&dir).exists());
}

#[test]
fn later_starts_load_the_same_keys() {
    let (_directory, dir) = root();
    let first = open(&dir, NOW).unwrap();

    let second = open(&dir, NOW + 1).unwrap();

    assert_eq!(first.root.certificate_pem(), second.root.certificate_pem());
    assert_eq!(first.keys.ca.scalar(), second.keys.ca.scalar());
    assert_eq!(first.keys.k256.scalar(), second.keys.k256.scalar());
    assert_eq!(first.bootstrap_info, second.bootstrap_info);
}

#[test]
fn evidence_covers_the_new_public_keys() {
    let (_directory, dir) = root();
    let asked = std::cell::RefCell::new(Vec::new());
    let attest = |report_data: &[u8; 64]| {
        asked.borrow_mut().push(*report_data);
        Ok(Some(b"evidence".to_vec()))
    };

    let store = site(&dir, &Vault::plain(), &attest, NOW, |site| site.load_or_create()).unwrap();

    let info = store.bootstrap_info.unwrap();
    assert_eq!(info.attestation, b"evidence");
    assert!(asked.borrow().contains(&bootstrap_report_data(&info.ca_pubkey, &info.k256_pubkey.try_into().unwrap())));
}

/// The text is hashed with Keccak-256 and its misspelling; computed with another implementation.
#[test]
fn report_data_is_that_of_deployed_verifiers() {
    let mut expected = [0; 64];
    expected[..32].copy_from_slice(&hex::decode("d9ead966497871b1d95e136c1f03588ca0ffed4426069bd7e64c3b0314378e89").unwrap());

    assert_eq!(bootstrap_report_data(&[1, 2, 3], &[4; 33]), expected);
}

#[test]
fn an_interrupted_bootstrap_leaves_nothing() {
    let (_directory, dir) = root();
    fs::create_dir_all(staging_of(&dir)).unwrap();
    fs::write(staging_of(&dir).join(ROOT_KEY), "half a key").unwrap();

    open(&dir, NOW).unwrap();

    assert!(!staging_of(&dir).exists());
}

#[test]
fn an_empty_directory_is_taken() {
    let (_directory, dir) = root();
    fs::create_dir_all(&dir).unwrap();

    open(&dir, NOW).unwrap();
}

#[test]
fn a_directory_with_other_files_is_left_alone() {
    let (_directory, dir) = root();
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("notes.txt"), "mine").unwrap();

    assert_eq!(must_fail(&dir).code(), "kms/cert-dir-foreign");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
}

#[test]
fn a_missing_key_is_never_replaced_by_a_new_one() {
    for name in [ROOT_KEY, ROOT_CRT, TEMP_KEY, TEMP_CRT, RPC_KEY, RPC_CRT, K256_KEY] {
        let (_directory, dir) = root();
        open(&dir, NOW).unwrap();
        fs::remove_file(dir.join(name)).unwrap();

        let error = must_fail(&dir);

        assert_eq!(error.code(), "kms/keys-incomplete");
        assert!(error.to_string().ends_with(name), "{error}");
    }
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let (_directory, dir) = root();
    open(&dir, NOW).unwrap();
    fs::set_permissions(dir.join(K256_KEY), fs::Permissions::from_mode(0o640)).unwrap();

    assert_eq!(must_fail(&dir).code(), "kms/keys-exposed");
}

#[test]
fn files_of_another_kms_are_noticed() {
    for name in [ROOT_KEY, ROOT_CRT, TEMP_KEY, TEMP_CRT, K256_KEY, BOOTSTRAP_INFO] {
        let ((_one, dir), (_two, other)) = (root(), root());
        open(&dir, NOW).unwrap();
        open(&other, NOW).unwrap();
        fs::copy(other.join(name), dir.join(name)).unwrap();

        assert_eq!(must_fail(&dir).code(), "kms/keys-mismatch", "{name}");
    }
}

#[test]
fn damaged_files_are_named() {
    for name in [ROOT_KEY, TEMP_KEY, RPC_KEY, K256_KEY, BOOTSTRAP_INFO] {
        let (_directory, dir) = root();
        open(&dir, NOW).unwrap();
        fs::write(dir.join(name), [0xff; 31]).unwrap();

        let error = must_fail(&dir);

        assert!(error.to_string().contains(name), "{error}");
        assert!(!error.fix().is_empty());
    }
}

#[test]
fn authorities_are_renewed_with_the_same_key_in_their_last_year() {
    let (_directory, dir) = root();
    let first = open(&dir, NOW).unwrap();

    let early = open(&dir, NOW + TEN_YEARS - CA_RENEWAL_SECONDS - 10).unwrap();
    assert_eq!(early.root.certificate_pem(), first.root.certificate_pem());

    let renewed = open(&dir, NOW + TEN_YEARS - CA_RENEWAL_SECONDS + 10).unwrap();
    assert_ne!(renewed.root.certificate_pem(), first.root.certificate_pem());
    assert_ne!(renewed.temp.certificate_pem(), first.temp.certificate_pem());
    assert_eq!(renewed.root.spki_der(), first.root.spki_der());
    assert_eq!(renewed.temp.spki_der(), first.temp.spki_der());
}

#[test]
fn keys_whose_origin_the_tee_does_not_prove_are_not_made() {
    let (_directory, dir) = root();

    let made = site(&dir, &Vault::plain(), &|_| Err(AttesterError::NoTee), NOW, |site| site.load_or_create());

    assert_eq!(made.err().map(|error| error.code()), Some("kms/own-evidence"));
    assert!(!dir.exists());
}

fn vault(byte: u8) -> Vault {
    Vault::under(Kind::SoftwareTee, &Secret::new([byte; 32]))
}

#[test]
fn sealed_keys_are_the_same_at_the_next_start_and_not_readable_in_the_files() {
    let (_directory, dir) = root();
    let first = site(&dir, &vault(1), &|_| Ok(None), NOW, |site| site.load_or_create()).unwrap();

    let second = site(&dir, &vault(1), &|_| Ok(None), NOW, |site| site.load_or_create()).unwrap();

    assert_eq!(first.keys.k256.scalar(), second.keys.k256.scalar());
    for name in [ROOT_KEY, TEMP_KEY, RPC_KEY, K256_KEY] {
        let bytes = fs::read(dir.join(name)).unwrap();
        assert!(crate::sealing::is_sealed(&bytes), "{name}");
        assert!(!bytes.windows(11).any(|window| window == b"PRIVATE KEY"), "{name}");
    }
}

#[test]
fn sealed_keys_open_nowhere_else() {
    let (_directory, dir) = root();
    site(&dir, &vault(1), &|_| Ok(None), NOW, |site| site.load_or_create()).unwrap();
    let code = |vault: &Vault| site(&dir, vault, &|_| Ok(None), NOW, |site| site.load()).err().map(|error| error.code());

    assert_eq!(code(&vault(2)), Some("kms/keys-sealed"));
    assert_eq!(code(&Vault::plain()), Some("kms/keys-sealed"));
    assert_eq!(code(&vault(1)), None);
}

#[test]
fn a_sealed_file_does_not_pass_for_another_one() {
    let (_directory, dir) = root();
    site(&dir, &vault(1), &|_| Ok(None), NOW, |site| site.load_or_create()).unwrap();
    fs::copy(dir.join(RPC_KEY), dir.join(TEMP_KEY)).unwrap();

    let error = site(&dir, &vault(1), &|_| Ok(None), NOW, |site| site.load()).err().unwrap();

    assert_eq!(error.code(), "kms/keys-sealed");
    assert!(error.to_string().ends_with(TEMP_KEY), "{error}");
}

#[test]
fn plaintext_is_not_taken_for_sealed_keys_and_is_imported_only_on_request() {
    let (_directory, dir) = root();
    let plain = open(&dir, NOW).unwrap();
    let refused = site(&dir, &vault(1), &|_| Ok(None), NOW, |site| site.load_or_create());
    assert_eq!(refused.err().map(|error| error.code()), Some("kms/keys-not-sealed"));
    let elsewhere = dir.with_file_name("reference");
    fs::rename(&dir, &elsewhere).unwrap();

    let imported = site(&dir, &vault(1), &|_| Ok(None), NOW, |site| site.import(&elsewhere)).unwrap();

    assert_eq!(imported.keys.ca.scalar(), plain.keys.ca.scalar());
    assert_eq!(imported.keys.k256.scalar(), plain.keys.k256.scalar());
    assert_eq!(imported.temp.spki_der(), plain.temp.spki_der());
    assert_eq!(imported.bootstrap_info, plain.bootstrap_info);
    assert!(crate::sealing::is_sealed(&fs::read(dir.join(K256_KEY)).unwrap()));
    let again = site(&dir, &vault(1), &|_| Ok(None), NOW, |site| site.import(&elsewhere));
    assert_eq!(again.err().map(|error| error.code()), Some("kms/keys-exist"));
}
