//! Image archives become volumes: the same bytes each time, and only from archives that are what they claim.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::{
    fs,
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use dstack_api::UserFacing as _;
use dstack_os_image::{
    tools::{self, Toolbox},
    volume::{self, VolumeError},
};
use sha2::{Digest as _, Sha256};

/// The host's `mkfs.erofs`, or the one that building an image left in the cache.
fn tools() -> Toolbox {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home).unwrap();
    Toolbox::for_volumes(&cache.join("dstack/os")).unwrap()
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// A layer with one file, as a tar.
fn layer(file: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    add(&mut tar, tar::EntryType::Regular, file, content);
    tar.into_inner().unwrap()
}

/// Adds an entry, without the checks of paths that the library makes.
fn add(tar: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o640);
    header.set_uid(5);
    header.set_gid(6);
    header.set_mtime(1_700_000_000);
    header.set_cksum();
    tar.append(&header, content).unwrap();
}

/// Writes an archive of one image with one layer. `change` may spoil the list of entries.
fn archive(dir: &Path, file: &str, reference: &str, layer: &[u8], change: impl FnOnce(&mut Vec<(String, Vec<u8>)>)) -> PathBuf {
    image_archive(dir, file, reference, layer, &digest(layer), change)
}

/// The same for a layer whose blob is not its tar.
fn image_archive(
    dir: &Path,
    file: &str,
    reference: &str,
    layer: &[u8],
    diff_id: &str,
    change: impl FnOnce(&mut Vec<(String, Vec<u8>)>),
) -> PathBuf {
    let config =
        format!(r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["sha256:{diff_id}"]}}}}"#).into_bytes();
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
    let web = archive(dir.path(), "web.tar", "hello-web:1", &layer("web", b"1"), |_| {});
    let app = archive(dir.path(), "app.tar", "hello-app:1", &layer("app", b"1"), |entries| entries.reverse());
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));

    let first = volume::pack(&[&web, &app], &one, &tools()).unwrap();
    let second = volume::pack(&[&app, &web], &two, &tools()).unwrap();

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
    let web = archive(dir.path(), "web.tar", "hello-web:1", &layer("web", b"1"), |_| {});
    let packed = volume::pack(&[&web], dir.path(), &tools()).unwrap();
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
        let bad = archive(dir.path(), "bad.tar", "x:1", &layer("x", b"1"), spoil);
        let folder = dir.path().join("volumes");

        let error = volume::pack(&[&bad], &folder, &tools()).unwrap_err();

        assert_eq!(error.code(), "volume/bad-archive");
        let VolumeError::Archive { source, .. } = error else { panic!("{error}") };
        assert!(source.to_string().contains(clue), "{clue}: {source}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "{clue}");
    }
}

#[test]
fn one_reference_cannot_name_two_images() {
    let dir = tempfile::tempdir().unwrap();
    let one = archive(dir.path(), "one.tar", "x:1", &layer("one", b"1"), |_| {});
    let two = archive(dir.path(), "two.tar", "x:1", &layer("two", b"2"), |_| {});

    let error = volume::pack(&[&one, &two], dir.path(), &tools()).unwrap_err();

    assert_eq!(error.code(), "volume/ambiguous-reference");
}

#[test]
fn a_missing_tool_names_its_package() {
    let dir = tempfile::tempdir().unwrap();
    let web = archive(dir.path(), "web.tar", "hello-web:1", &layer("web", b"1"), |_| {});

    let error = volume::pack(&[&web], &dir.path().join("v"), &Toolbox::pinned("/nonexistent")).unwrap_err();

    assert!(matches!(error, VolumeError::Tool(_)), "{error}");
    assert!(!error.fix().is_empty());
}

/// The files of the one layer of `volume`, extracted.
fn must_extract(volume: &volume::PackedVolume, into: &Path) -> PathBuf {
    let data = into.join("data");
    let bytes = fs::read(&volume.path).unwrap();
    fs::write(&data, &bytes[..usize::try_from(volume.data_bytes).unwrap()]).unwrap();
    tools::run(tools().command("fsck.erofs").arg(format!("--extract={}", into.join("files").display())).arg(&data)).unwrap();
    let layer = fs::read_dir(into.join("files/layers")).unwrap().next().unwrap().unwrap().path();
    layer.join("root")
}

#[test]
fn a_layer_becomes_a_directory_as_the_image_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    add(&mut tar, tar::EntryType::Directory, "etc/", b"");
    add(&mut tar, tar::EntryType::Regular, "/etc/passwd", b"root");
    add(&mut tar, tar::EntryType::Regular, "etc/.wh.gone", b"");
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Link);
    link.set_size(0);
    link.set_mode(0o640);
    tar.append_link(&mut link, "again", "etc/passwd").unwrap();
    let layer = tar.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&layer).unwrap();
    let compressed = gzip.finish().unwrap();
    let image = image_archive(dir.path(), "image.tar", "x:1", &compressed, &digest(&layer), |_| {});

    let packed = volume::pack(&[&image], dir.path(), &tools()).unwrap();

    let root = must_extract(&packed, dir.path());
    assert_eq!(root.parent().unwrap().file_name().unwrap().to_str(), Some(digest(&layer).as_str()));
    assert_eq!(fs::read_to_string(root.with_file_name("size")).unwrap(), "4");
    let passwd = fs::metadata(root.join("etc/passwd")).unwrap();
    assert_eq!((passwd.mode() & 0o7777, passwd.mtime(), passwd.nlink()), (0o640, 1_700_000_000, 2));
    assert_eq!(fs::read_to_string(root.join("again")).unwrap(), "root");
    assert!(!root.join("etc/.wh.gone").exists());
    if is_root() {
        let gone = fs::symlink_metadata(root.join("etc/gone")).unwrap();
        assert_eq!((gone.mode() & 0o170_000, gone.rdev()), (0o020_000, 0), "a whiteout of overlayfs");
        assert_eq!((passwd.uid(), passwd.gid()), (5, 6));
    }
}

/// Only root can make devices and give files away.
fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
fn a_layer_that_is_not_the_configured_one_or_leaves_its_place_is_refused() {
    let good = layer("x", b"1");
    let zstd_magic_only = [0x28, 0xb5, 0x2f, 0xfd, 0, 0];
    let cases: [(&str, Vec<u8>, String); 4] = [
        ("has the digest", good.clone(), "00".repeat(32)),
        ("does not belong", layer("../x", b"1"), digest(&layer("../x", b"1"))),
        ("does not belong", layer("a/../../x", b"1"), digest(&layer("a/../../x", b"1"))),
        ("read the archive", zstd_magic_only.to_vec(), digest(&good)),
    ];
    for (clue, blob, diff_id) in cases {
        let dir = tempfile::tempdir().unwrap();
        let bad = image_archive(dir.path(), "bad.tar", "x:1", &blob, &diff_id, |_| {});
        let folder = dir.path().join("volumes");

        let error = volume::pack(&[&bad], &folder, &tools()).unwrap_err();

        let VolumeError::Archive { source, .. } = error else { panic!("{error}") };
        assert!(source.to_string().contains(clue), "{clue}: {source}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "{clue}");
    }
}
