//! Image archives become volumes: the same bytes each time, and only from archives that are what they claim.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use dstack_api::UserFacing as _;
use dstack_os_image::{
    tools::Toolbox,
    volume::{self, VolumeError},
};
use sha2::{Digest as _, Sha256};

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Writes an archive of one image with one layer. `change` may spoil the list of entries.
fn archive(dir: &Path, file: &str, reference: &str, layer: &[u8], change: impl FnOnce(&mut Vec<(String, Vec<u8>)>)) -> PathBuf {
    let config = br#"{"architecture":"amd64","os":"linux"}"#.to_vec();
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"digest":"sha256:{}","size":{}}},"layers":[{{"digest":"sha256:{}","size":{}}}]}}"#,
        digest(&config),
        config.len(),
        digest(layer),
        layer.len()
    )
    .into_bytes();
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{}","size":{},
           "annotations":{{"org.opencontainers.image.ref.name":"{reference}"}}}}]}}"#,
        digest(&manifest),
        manifest.len()
    )
    .into_bytes();
    let blob = |bytes: &[u8]| (format!("blobs/sha256/{}", digest(bytes)), bytes.to_vec());
    let mut entries = vec![("index.json".to_owned(), index), blob(layer), blob(&config), blob(&manifest)];
    change(&mut entries);
    let path = dir.join(file);
    let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    tar.into_inner().unwrap();
    path
}

#[test]
fn the_same_archives_give_the_same_volume() {
    let dir = tempfile::tempdir().unwrap();
    let web = archive(dir.path(), "web.tar", "hello-web:1", b"web layer", |_| {});
    let app = archive(dir.path(), "app.tar", "hello-app:1", b"app layer", |entries| entries.reverse());
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));

    let first = volume::pack(&[&web, &app], &one, &Toolbox::host()).unwrap();
    let second = volume::pack(&[&app, &web], &two, &Toolbox::host()).unwrap();

    assert_eq!(fs::read(&first.path).unwrap(), fs::read(&second.path).unwrap());
    assert_eq!(first.path, one.join(format!("{}.img", first.verity_root)));
    assert_eq!(first.images.iter().map(|image| image.reference.as_str()).collect::<Vec<_>>(), ["hello-app:1", "hello-web:1"]);
    assert_eq!(volume::data_bytes(&first.path).unwrap(), first.data_bytes);
    volume::verify(&first.path, &first.verity_root).unwrap();
    assert_eq!(fs::read_dir(&one).unwrap().count(), 1);
}

#[test]
fn a_changed_volume_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let web = archive(dir.path(), "web.tar", "hello-web:1", b"web layer", |_| {});
    let packed = volume::pack(&[&web], dir.path(), &Toolbox::host()).unwrap();
    let mut bytes = fs::read(&packed.path).unwrap();
    bytes[1500] ^= 1;
    fs::write(&packed.path, bytes).unwrap();

    let error = volume::verify(&packed.path, &packed.verity_root).unwrap_err();

    assert_eq!(error.code(), "volume/tampered");
}

#[test]
fn archives_that_are_not_what_they_claim_are_refused() {
    type Spoil = fn(&mut Vec<(String, Vec<u8>)>);
    let cases: [(&str, Spoil); 6] = [
        ("has the digest", |entries| entries[1].1.push(0)),
        ("not in the archive", |entries| drop(entries.remove(1))),
        ("index.json", |entries| drop(entries.remove(0))),
        ("does not belong", |entries| entries.push(("etc/passwd".to_owned(), Vec::new()))),
        ("does not belong", |entries| entries.push(("blobs/sha256/zz".to_owned(), Vec::new()))),
        ("malformed", |entries| entries[0].1 = b"{".to_vec()),
    ];
    for (clue, spoil) in cases {
        let dir = tempfile::tempdir().unwrap();
        let bad = archive(dir.path(), "bad.tar", "x:1", b"layer", spoil);
        let folder = dir.path().join("volumes");

        let error = volume::pack(&[&bad], &folder, &Toolbox::host()).unwrap_err();

        assert_eq!(error.code(), "volume/bad-archive");
        let VolumeError::Archive { source, .. } = error else { panic!("{error}") };
        assert!(source.to_string().contains(clue), "{clue}: {source}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "{clue}");
    }
}

#[test]
fn one_reference_cannot_name_two_images() {
    let dir = tempfile::tempdir().unwrap();
    let one = archive(dir.path(), "one.tar", "x:1", b"one", |_| {});
    let two = archive(dir.path(), "two.tar", "x:1", b"two", |_| {});

    let error = volume::pack(&[&one, &two], dir.path(), &Toolbox::host()).unwrap_err();

    assert_eq!(error.code(), "volume/ambiguous-reference");
}

#[test]
fn a_missing_tool_names_its_package() {
    let dir = tempfile::tempdir().unwrap();
    let web = archive(dir.path(), "web.tar", "hello-web:1", b"web layer", |_| {});

    let error = volume::pack(&[&web], &dir.path().join("v"), &Toolbox::pinned("/nonexistent")).unwrap_err();

    assert!(matches!(error, VolumeError::Tool(_)), "{error}");
    assert!(!error.fix().is_empty());
}
