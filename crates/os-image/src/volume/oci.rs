//! OCI archives: a tar of an image layout, checked and unpacked.
//!
//! Source: OCI image specification 1.1, image layout and image index.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

use dstack_manifest::Digest32;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const IMAGE_NAME: &str = "io.containerd.image.name";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// Largest JSON document that is read.
const MAX_JSON_BYTES: u64 = 4 << 20;
/// Largest archive content: the guest has to hold it as well.
const MAX_ARCHIVE_BYTES: u64 = 32 << 30;
const MAX_ENTRIES: usize = 10_000;

/// Why an archive is not usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OciError {
    /// It cannot be read, or what is in it cannot be written.
    #[error("read the archive")]
    Io(#[from] io::Error),
    /// An entry does not belong into an OCI layout.
    #[error("entry {name:?} does not belong into an OCI image layout")]
    ForeignEntry {
        /// Its name.
        name: String,
    },
    /// Too many entries or too much data.
    #[error("it has more than {MAX_ENTRIES} entries or more than 32 GiB")]
    TooLarge,
    /// A blob is not what its name says.
    #[error("blob sha256:{name} has the digest sha256:{actual}")]
    WrongDigest {
        /// Its name.
        name: String,
        /// Computed.
        actual: Digest32,
    },
    /// A document is missing or not valid.
    #[error("{what} is missing or malformed: {reason}")]
    Document {
        /// Which one.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A blob that a manifest names is not in the archive.
    #[error("blob {digest} is named by the image and not in the archive")]
    MissingBlob {
        /// Its digest.
        digest: String,
    },
    /// No image for this machine.
    #[error("it has no image for linux/amd64")]
    NoImage,
}

/// An image inside a volume.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackedImage {
    /// Name given in the archive, such as `hello-web:1`; empty if it has none.
    pub reference: String,
    /// `sha256:<hex>` of its manifest.
    pub digest: String,
    /// Size of the manifest.
    pub manifest_bytes: u64,
    /// Its media type.
    pub media_type: String,
    /// `sha256:<hex>` of its configuration.
    pub config: String,
    /// `sha256:<hex>` of its layers, lowest first.
    pub layers: Vec<String>,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize, Serialize, Clone)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing)]
    platform: Option<Platform>,
}

#[derive(Deserialize, Clone)]
struct Platform {
    os: String,
    architecture: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// Unpacks `archive` into the layout folder and returns its images for linux/amd64.
pub(super) fn unpack(archive: &Path, layout: &Path) -> Result<Vec<PackedImage>, OciError> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let mut index = None;
    let mut total = 0_u64;
    let mut tar = tar::Archive::new(io::BufReader::new(File::open(archive)?));
    for (count, entry) in tar.entries()?.enumerate() {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = name.strip_prefix("./").unwrap_or(&name).trim_end_matches('/').to_owned();
        total = total.saturating_add(entry.size());
        if count >= MAX_ENTRIES || total > MAX_ARCHIVE_BYTES {
            return Err(OciError::TooLarge);
        }
        let kind = entry.header().entry_type();
        if kind.is_dir() && ["", ".", "blobs", "blobs/sha256"].contains(&name.as_str()) {
            continue;
        }
        let foreign = || OciError::ForeignEntry { name: name.clone() };
        if !kind.is_file() {
            return Err(foreign());
        }
        match name.strip_prefix("blobs/sha256/") {
            Some(hex) => write_blob(&mut entry, &blobs, hex.parse().map_err(|_| foreign())?)?,
            None if name == "index.json" => index = Some(read_json(&mut entry, "index.json")?),
            // Derived from the index.
            None if ["oci-layout", "manifest.json", "repositories"].contains(&name.as_str()) => {}
            None => return Err(foreign()),
        }
    }
    let index: Index =
        index.ok_or_else(|| OciError::Document { what: "index.json".to_owned(), reason: "not in the archive".to_owned() })?;
    let images = select(&index, &blobs, 0)?;
    if images.is_empty() { Err(OciError::NoImage) } else { Ok(images) }
}

fn write_blob(source: &mut impl Read, blobs: &Path, name: Digest32) -> Result<(), OciError> {
    let path = blobs.join(name.to_string());
    let mut file = File::create(&path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let length = source.read(&mut buffer)?;
        let Some(chunk) = buffer.get(..length).filter(|chunk| !chunk.is_empty()) else { break };
        hasher.update(chunk);
        file.write_all(chunk)?;
    }
    let actual = Digest32::new(hasher.finalize().into());
    if actual == name { Ok(()) } else { Err(OciError::WrongDigest { name: name.to_string(), actual }) }
}

fn select(index: &Index, blobs: &Path, depth: usize) -> Result<Vec<PackedImage>, OciError> {
    let mut images = Vec::new();
    for descriptor in &index.manifests {
        let is_ours = descriptor.platform.as_ref().is_none_or(|platform| platform.os == "linux" && platform.architecture == "amd64");
        if !is_ours {
            continue;
        }
        let reference = [IMAGE_NAME, REF_NAME].iter().find_map(|key| descriptor.annotations.get(*key)).cloned().unwrap_or_default();
        if [INDEX, DOCKER_LIST].contains(&descriptor.media_type.as_str()) && depth == 0 {
            let nested: Index = read_json(&mut open_blob(blobs, descriptor)?, &descriptor.digest)?;
            let mut inner = select(&nested, blobs, depth + 1)?;
            inner.truncate(1);
            images.extend(inner.into_iter().map(|image| PackedImage { reference: reference.clone(), ..image }));
            continue;
        }
        let media_type = if descriptor.media_type == DOCKER_MANIFEST { DOCKER_MANIFEST } else { MANIFEST };
        let manifest: Manifest = read_json(&mut open_blob(blobs, descriptor)?, &descriptor.digest)?;
        for part in manifest.layers.iter().chain([&manifest.config]) {
            open_blob(blobs, part)?;
        }
        images.push(PackedImage {
            reference,
            digest: descriptor.digest.clone(),
            manifest_bytes: descriptor.size,
            media_type: media_type.to_owned(),
            config: manifest.config.digest,
            layers: manifest.layers.into_iter().map(|layer| layer.digest).collect(),
        });
    }
    Ok(images)
}

fn open_blob(blobs: &Path, descriptor: &Descriptor) -> Result<File, OciError> {
    let missing = || OciError::MissingBlob { digest: descriptor.digest.clone() };
    let name: Digest32 = descriptor.digest.strip_prefix("sha256:").and_then(|hex| hex.parse().ok()).ok_or_else(missing)?;
    let file = File::open(blobs.join(name.to_string())).map_err(|_| missing())?;
    if file.metadata()?.len() == descriptor.size { Ok(file) } else { Err(missing()) }
}

pub(super) fn read_json<T: serde::de::DeserializeOwned>(source: &mut impl Read, what: &str) -> Result<T, OciError> {
    let mut bytes = Vec::new();
    source.take(MAX_JSON_BYTES).read_to_end(&mut bytes)?;
    serde_json::from_slice(&bytes).map_err(|error| OciError::Document { what: what.to_owned(), reason: error.to_string() })
}

/// Appends the documents: what the volume holds, and manifest and configuration of each image.
pub(super) fn append_documents(out: &mut tar::Builder<impl Write>, blobs: &Path, images: &[PackedImage]) -> Result<(), OciError> {
    let manifests: Vec<Descriptor> = images.iter().map(descriptor).collect();
    let index = serde_json::json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }).to_string();
    append_document(out, "oci-layout", LAYOUT)?;
    append_document(out, "index.json", index.as_bytes())?;
    let needed: BTreeSet<&str> =
        images.iter().flat_map(|image| [&image.config, &image.digest]).filter_map(|digest| digest.strip_prefix("sha256:")).collect();
    for digest in needed {
        append_document(out, &format!("blobs/sha256/{digest}"), &fs::read(blobs.join(digest))?)?;
    }
    Ok(())
}

fn append_document(out: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    out.append_data(&mut header(tar::EntryType::Regular, 0o444, bytes.len() as u64), name, bytes)
}

/// Header of an entry of ours: root's, from the beginning of time.
pub(super) fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn descriptor(image: &PackedImage) -> Descriptor {
    let reference = (!image.reference.is_empty()).then(|| (REF_NAME.to_owned(), image.reference.clone()));
    Descriptor {
        media_type: image.media_type.clone(),
        digest: image.digest.clone(),
        size: image.manifest_bytes,
        annotations: reference.into_iter().collect(),
        platform: None,
    }
}
