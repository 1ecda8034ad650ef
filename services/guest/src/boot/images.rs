//! Container images that came on a verified volume: checked against the measured app-compose. Nothing is downloaded or unpacked.
//!
//! The volume's root hash is measured, so what is on it is what was packed; the digests say that it holds these images and no others.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use dstack_api::UserFacing;
use dstack_manifest::{Digest32, PreloadedImage, VerityVolume};
use serde::Deserialize;

use super::image_store::StoreError;

const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// Why an image was not loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A file of the layout cannot be read.
    #[error("read {} of the image volume", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A document is not what it should be.
    #[error("{} of the image volume is refused: {reason}", path.display())]
    Document {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The volume holds other images than the app-compose says.
    #[error("the volume holds the images {found:?}, app-compose.json names {expected:?}")]
    OtherImages {
        /// Digests of the volume.
        found: Vec<String>,
        /// Digests of the document.
        expected: Vec<String>,
    },
    /// They cannot be entered into the engine's store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl UserFacing for ImageError {
    fn code(&self) -> &'static str {
        match self {
            Self::Store(_) => "guest/image-store",
            _ => "guest/image-volume-refused",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Store(_) => "give the VM a larger disk; otherwise pack the image archive again".to_owned(),
            _ => "pack the image archives again and deploy what that gives".to_owned(),
        }
    }
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// An image of a volume whose manifest has the measured digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedImage {
    /// Where its volume is mounted.
    pub(super) volume: PathBuf,
    /// Name the compose file uses.
    pub(super) reference: String,
    /// Digest of the manifest.
    pub(super) manifest: Digest32,
    /// Digest of the configuration: the engine's id of the image.
    pub(super) id: Digest32,
    /// The configuration.
    pub(super) config: Vec<u8>,
    /// Layers, lowest first, by the digest of their uncompressed tar.
    pub(super) diff_ids: Vec<Digest32>,
}

/// Checks all images of the app against the layouts on its volumes. `root`: `/` outside tests.
///
/// Errors: a layout that names other manifests than the app-compose, or is damaged.
pub fn check_all(root: &Path, volumes: &[VerityVolume], images: &[PreloadedImage]) -> Result<Vec<CheckedImage>, ImageError> {
    let mut checked = Vec::new();
    for (index, volume) in volumes.iter().enumerate() {
        let wanted: Vec<&PreloadedImage> = images.iter().filter(|image| image.volume == index).collect();
        if wanted.is_empty() {
            continue;
        }
        let layout = root.join(volume.target.trim_start_matches('/'));
        check_index(&layout, &wanted)?;
        for image in wanted {
            checked.push(check_image(&layout, image)?);
        }
    }
    Ok(checked)
}

fn check_index(layout: &Path, wanted: &[&PreloadedImage]) -> Result<(), ImageError> {
    let path = layout.join("index.json");
    let index: Index = parse(&path, &read_document(&path)?)?;
    let sorted = |mut digests: Vec<String>| {
        digests.sort();
        digests.dedup();
        digests
    };
    let found = sorted(index.manifests.into_iter().map(|manifest| manifest.digest).collect());
    let expected = sorted(wanted.iter().map(|image| image.digest.clone()).collect());
    if found == expected { Ok(()) } else { Err(ImageError::OtherImages { found, expected }) }
}

fn check_image(layout: &Path, image: &PreloadedImage) -> Result<CheckedImage, ImageError> {
    let manifest_digest = parse_digest(layout, &image.digest)?;
    let (path, bytes) = read_blob(layout, &manifest_digest)?;
    let manifest: Manifest = parse(&path, &bytes)?;
    let id = parse_digest(layout, &manifest.config.digest)?;
    let (path, config) = read_blob(layout, &id)?;
    let parsed: Config = parse(&path, &config)?;
    let diff_ids = parsed.rootfs.diff_ids.iter().map(|diff_id| parse_digest(layout, diff_id)).collect::<Result<Vec<_>, _>>()?;
    if let Some(missing) = diff_ids.iter().map(|diff_id| layer(layout, diff_id)).find(|path| !path.is_dir()) {
        return Err(ImageError::Document { path: missing, reason: "it is not on the volume".to_owned() });
    }
    let reference = image.reference.clone();
    Ok(CheckedImage { volume: layout.to_owned(), reference, manifest: manifest_digest, id, config, diff_ids })
}

/// Directory of a layer's files.
pub(super) fn layer(volume: &Path, diff_id: &Digest32) -> PathBuf {
    volume.join("layers").join(diff_id.to_string()).join("root")
}

fn read_blob(layout: &Path, digest: &Digest32) -> Result<(PathBuf, Vec<u8>), ImageError> {
    let path = layout.join("blobs/sha256").join(digest.to_string());
    let bytes = read_document(&path)?;
    if Digest32::of(&bytes) == *digest {
        return Ok((path, bytes));
    }
    Err(ImageError::Document { path, reason: format!("it does not have the digest {digest}") })
}

fn parse_digest(layout: &Path, text: &str) -> Result<Digest32, ImageError> {
    text.strip_prefix("sha256:")
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| ImageError::Document { path: layout.join("index.json"), reason: format!("{text:?} is not a SHA-256 digest") })
}

fn read_document(path: &Path) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_DOCUMENT_BYTES).read_to_end(&mut bytes))
        .map_err(|source| ImageError::Read { path: path.to_owned(), source })?;
    Ok(bytes)
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| ImageError::Document { path: path.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
pub(super) mod tests {
    use super::*;

    /// A directory with one volume, mounted on `v`, with one image of `layers`.
    pub(in crate::boot) struct Volume {
        pub(in crate::boot) directory: tempfile::TempDir,
        pub(in crate::boot) manifest: Digest32,
    }

    pub(in crate::boot) fn must_volume(layers: &[&str]) -> Volume {
        let directory = tempfile::tempdir().unwrap();
        let blobs = directory.path().join("v/blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let put = |bytes: &[u8]| {
            let digest = Digest32::of(bytes);
            fs::write(blobs.join(digest.to_string()), bytes).unwrap();
            digest
        };
        let diff_ids: Vec<String> = layers.iter().map(|name| format!("sha256:{}", Digest32::of(name.as_bytes()))).collect();
        for name in layers {
            let root = layer(&directory.path().join("v"), &Digest32::of(name.as_bytes()));
            fs::create_dir_all(&root).unwrap();
            fs::write(root.join("file"), name).unwrap();
            fs::write(root.with_file_name("size"), name.len().to_string()).unwrap();
        }
        let config = put(serde_json::json!({ "rootfs": { "type": "layers", "diff_ids": diff_ids } }).to_string().as_bytes());
        let manifest = put(format!(r#"{{"config":{{"digest":"sha256:{config}"}}}}"#).as_bytes());
        let index = format!(r#"{{"manifests":[{{"digest":"sha256:{manifest}"}}]}}"#);
        fs::write(directory.path().join("v/index.json"), index).unwrap();
        Volume { directory, manifest }
    }

    pub(in crate::boot) fn checked(volume: &Volume, reference: &str, digest: &str) -> Result<Vec<CheckedImage>, ImageError> {
        let verity = VerityVolume { source: "v.img".to_owned(), verity_root: Digest32::new([0; 32]), target: "/v".to_owned() };
        let image = PreloadedImage { reference: reference.to_owned(), digest: digest.to_owned(), volume: 0 };
        check_all(volume.directory.path(), &[verity], &[image])
    }

    #[test]
    fn an_image_is_known_by_manifest_configuration_and_layers() {
        let volume = must_volume(&["base", "top"]);

        let images = checked(&volume, "hello:1", &format!("sha256:{}", volume.manifest)).unwrap();

        assert_eq!(images[0].manifest, volume.manifest);
        assert_eq!(images[0].id, Digest32::of(&images[0].config));
        assert_eq!(images[0].diff_ids, [Digest32::of(b"base"), Digest32::of(b"top")]);
    }

    #[test]
    fn a_volume_with_other_images_is_refused() {
        let volume = must_volume(&["base"]);

        let error = checked(&volume, "hello:1", &format!("sha256:{}", "00".repeat(32))).unwrap_err();

        assert!(matches!(error, ImageError::OtherImages { .. }), "{error}");
    }

    #[test]
    fn a_manifest_or_configuration_that_was_changed_is_refused() {
        for which in 0..2 {
            let volume = must_volume(&["base"]);
            let digest = format!("sha256:{}", volume.manifest);
            let image = checked(&volume, "hello:1", &digest).unwrap().remove(0);
            let changed = if which == 0 { image.manifest } else { image.id };
            let path = volume.directory.path().join("v/blobs/sha256").join(changed.to_string());
            let mut bytes = fs::read(&path).unwrap();
            bytes.push(b' ');
            fs::write(path, bytes).unwrap();

            let error = checked(&volume, "hello:1", &digest).unwrap_err();

            assert!(error.to_string().contains("does not have the digest"), "{error}");
        }
    }

    #[test]
    fn a_layer_that_is_missing_is_named() {
        let volume = must_volume(&["base"]);
        fs::remove_dir_all(volume.directory.path().join("v/layers")).unwrap();

        let error = checked(&volume, "hello:1", &format!("sha256:{}", volume.manifest)).unwrap_err();

        assert!(error.to_string().contains("not on the volume"), "{error}");
    }
}
