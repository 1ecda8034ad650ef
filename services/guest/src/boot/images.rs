//! Container images that came on a verified volume as an OCI layout: checked against the measured app-compose and loaded
//! into the engine. Nothing is downloaded.

use std::{
    fs, io,
    io::{Read as _, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use dstack_api::UserFacing;
use dstack_manifest::{Digest32, PreloadedImage, VerityVolume};
use serde::Deserialize;

use super::docker_engine::DockerEngine;

const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
const LOAD_PATIENCE: Duration = Duration::from_secs(1800);
const QUERY_PATIENCE: Duration = Duration::from_secs(60);

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
    /// The engine did not take it.
    #[error("load image {reference} into the container engine")]
    Engine {
        /// The image.
        reference: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl UserFacing for ImageError {
    fn code(&self) -> &'static str {
        match self {
            Self::Engine { .. } => "guest/image-load",
            _ => "guest/image-volume-refused",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Engine { .. } => "give the VM a larger disk; otherwise pack the image archive again".to_owned(),
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
    layers: Vec<Descriptor>,
}

/// An image of a layout whose manifest has the measured digest.
#[derive(Debug, PartialEq, Eq)]
pub struct CheckedImage {
    layout: PathBuf,
    reference: String,
    config: Digest32,
    layers: Vec<Digest32>,
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
    let digest = parse_digest(layout, &image.digest)?;
    let path = blob(layout, &digest);
    let bytes = read_document(&path)?;
    if Digest32::of(&bytes) != digest {
        return Err(ImageError::Document { path, reason: format!("it does not have the digest {digest}") });
    }
    let manifest: Manifest = parse(&path, &bytes)?;
    let layers = manifest.layers.iter().map(|layer| parse_digest(layout, &layer.digest)).collect::<Result<_, _>>()?;
    let config = parse_digest(layout, &manifest.config.digest)?;
    Ok(CheckedImage { layout: layout.to_owned(), reference: image.reference.clone(), config, layers })
}

fn parse_digest(layout: &Path, text: &str) -> Result<Digest32, ImageError> {
    text.strip_prefix("sha256:")
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| ImageError::Document { path: layout.join("index.json"), reason: format!("{text:?} is not a SHA-256 digest") })
}

fn blob(layout: &Path, digest: &Digest32) -> PathBuf {
    layout.join("blobs/sha256").join(digest.to_string())
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

/// What was done with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadOutcome {
    /// The engine has it from an earlier boot.
    AlreadyThere,
    /// It was loaded.
    Loaded,
}

impl CheckedImage {
    /// Name the compose file uses.
    #[must_use]
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// Loads the image under its reference, unless the engine has exactly this one.
    ///
    /// Errors: the engine refuses it or breaks off.
    pub fn load(&self, engine: &DockerEngine) -> Result<LoadOutcome, ImageError> {
        let failed = |source| ImageError::Engine { reference: self.reference.clone(), source };
        let known = engine.get(&format!("/images/{}/json", self.reference), QUERY_PATIENCE).map_err(failed)?;
        if known.status == 200 && image_id(&known.body) == Some(format!("sha256:{}", self.config)) {
            return Ok(LoadOutcome::AlreadyThere);
        }
        let answer = engine.post("/images/load?quiet=1", LOAD_PATIENCE, |body| self.write_archive(body)).map_err(failed)?;
        let text = String::from_utf8_lossy(&answer.body);
        if answer.status == 200 && !text.contains("\"error\"") {
            return Ok(LoadOutcome::Loaded);
        }
        let text: String = crate::console::printable(&text).chars().take(400).collect();
        Err(failed(io::Error::other(format!("the engine answered HTTP {}: {text}", answer.status))))
    }

    /// The archive form the engine takes: `manifest.json`, then the blobs it names.
    fn write_archive(&self, out: &mut dyn Write) -> io::Result<()> {
        let path = |digest: &Digest32| format!("blobs/sha256/{digest}");
        let manifest = serde_json::json!([{
            "Config": path(&self.config),
            "RepoTags": [self.reference],
            "Layers": self.layers.iter().map(path).collect::<Vec<_>>(),
        }]);
        let mut archive = tar::Builder::new(out);
        append(&mut archive, "manifest.json", serde_json::to_vec(&manifest)?.as_slice())?;
        let mut done: Vec<&Digest32> = Vec::new();
        for digest in std::iter::once(&self.config).chain(&self.layers) {
            if done.contains(&digest) {
                continue;
            }
            let file = fs::File::open(blob(&self.layout, digest))?;
            let mut header = header(file.metadata()?.len());
            archive.append_data(&mut header, path(digest), file)?;
            done.push(digest);
        }
        archive.finish()
    }
}

fn append(archive: &mut tar::Builder<&mut dyn Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = header(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    archive.append_data(&mut header, name, bytes)
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header
}

fn image_id(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Image {
        id: String,
    }
    serde_json::from_slice::<Image>(body).ok().map(|image| image.id)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    struct Layout {
        directory: tempfile::TempDir,
        manifest: Digest32,
    }

    fn must_layout() -> Layout {
        let directory = tempfile::tempdir().unwrap();
        let blobs = directory.path().join("v/blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let put = |bytes: &[u8]| {
            let digest = Digest32::of(bytes);
            fs::write(blobs.join(digest.to_string()), bytes).unwrap();
            digest
        };
        let (config, layer) = (put(b"{}"), put(b"layer"));
        let manifest = put(format!(r#"{{"config":{{"digest":"sha256:{config}"}},"layers":[{{"digest":"sha256:{layer}"}}]}}"#).as_bytes());
        let index = format!(r#"{{"manifests":[{{"digest":"sha256:{manifest}"}}]}}"#);
        fs::write(directory.path().join("v/index.json"), index).unwrap();
        Layout { directory, manifest }
    }

    fn checked(layout: &Layout, digest: &str) -> Result<Vec<CheckedImage>, ImageError> {
        let volume = VerityVolume { source: "v.img".to_owned(), verity_root: Digest32::new([0; 32]), target: "/v".to_owned() };
        let image = PreloadedImage { reference: "hello:1".to_owned(), digest: digest.to_owned(), volume: 0 };
        check_all(layout.directory.path(), &[volume], &[image])
    }

    #[test]
    fn the_archive_holds_manifest_config_and_layers() {
        let layout = must_layout();
        let images = checked(&layout, &format!("sha256:{}", layout.manifest)).unwrap();
        let mut archive = Vec::new();

        images[0].write_archive(&mut archive).unwrap();

        let mut archive = tar::Archive::new(archive.as_slice());
        let names: Vec<String> = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names.len(), 3);
        assert_eq!(names[0], "manifest.json");
    }

    #[test]
    fn a_layout_with_other_images_is_refused() {
        let layout = must_layout();

        let error = checked(&layout, &format!("sha256:{}", "00".repeat(32))).unwrap_err();

        assert!(matches!(error, ImageError::OtherImages { .. }), "{error}");
    }

    #[test]
    fn a_manifest_that_was_changed_is_refused() {
        let layout = must_layout();
        let path = layout.directory.path().join("v/blobs/sha256").join(layout.manifest.to_string());
        let mut bytes = fs::read(&path).unwrap();
        bytes.push(b' ');
        fs::write(path, bytes).unwrap();

        let error = checked(&layout, &format!("sha256:{}", layout.manifest)).unwrap_err();

        assert!(error.to_string().contains("does not have the digest"), "{error}");
    }
}
