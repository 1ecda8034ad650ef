//! Layers of container images as directories: decompressed, checked against the image's configuration, and put below
//! `layers/<diff id>/root` of one tar stream, from which `mkfs.erofs` makes the volume.
//!
//! Source: OCI image specification 1.1, layer file system changeset and `rootfs.diff_ids` of the configuration.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Read, Write},
    path::{Component, Path, PathBuf},
};

use dstack_manifest::Digest32;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::oci::{self, OciError, PackedImage};

/// Most bytes of file data in one layer.
const MAX_LAYER_BYTES: u64 = 64 << 30;
/// Most entries in one layer.
const MAX_ENTRIES: usize = 2_000_000;
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// Every layer that the images need, by diff id, with the blob it is in. Sorted, so that the same images give the same volume.
pub(super) fn of_images(images: &[PackedImage], blobs: &Path) -> Result<BTreeMap<Digest32, PathBuf>, OciError> {
    let mut layers = BTreeMap::new();
    for image in images {
        let malformed = |reason: String| OciError::Document { what: format!("configuration {}", image.config), reason };
        let config: Config = oci::read_json(&mut File::open(blob(blobs, &image.config)?)?, &image.config)?;
        let ids = config.rootfs.diff_ids;
        if ids.len() != image.layers.len() {
            return Err(malformed(format!("{} diff ids for {} layers", ids.len(), image.layers.len())));
        }
        for (id, layer) in ids.iter().zip(&image.layers) {
            let id = id.strip_prefix("sha256:").and_then(|hex| hex.parse().ok()).ok_or_else(|| malformed(format!("diff id {id:?}")))?;
            layers.insert(id, blob(blobs, layer)?);
        }
    }
    Ok(layers)
}

fn blob(blobs: &Path, digest: &str) -> Result<PathBuf, OciError> {
    let name: Option<Digest32> = digest.strip_prefix("sha256:").and_then(|hex| hex.parse().ok());
    name.map(|name| blobs.join(name.to_string())).ok_or_else(|| OciError::MissingBlob { digest: digest.to_owned() })
}

/// Appends the layer in `blob` to `out` and checks that it is the one named `diff_id`.
///
/// `blob`: untrusted; tar, also compressed with gzip or zstd.
pub(super) fn append(out: &mut tar::Builder<impl Write>, diff_id: &Digest32, blob: &Path) -> Result<(), OciError> {
    let base = PathBuf::from(format!("layers/{diff_id}"));
    let root = base.join("root");
    append_directory(out, &root)?;
    let mut layer = tar::Archive::new(Hashing { inner: decompressed(blob)?.take(MAX_LAYER_BYTES), hasher: Sha256::new() });
    let mut size = 0_u64;
    for (count, entry) in layer.entries()?.enumerate() {
        let mut entry = entry?;
        if count >= MAX_ENTRIES {
            return Err(OciError::TooLarge);
        }
        size = size.saturating_add(entry.size());
        append_entry(out, &root, &mut entry)?;
    }
    let mut rest = layer.into_inner();
    io::copy(&mut rest, &mut io::sink())?;
    let actual = Digest32::new(rest.hasher.finalize().into());
    if actual != *diff_id {
        return Err(OciError::WrongDigest { name: diff_id.to_string(), actual });
    }
    // What a container engine shows as the layer's size.
    let text = size.to_string();
    Ok(out.append_data(&mut oci::header(EntryType::Regular, 0o444, text.len() as u64), base.join("size"), text.as_bytes())?)
}

fn append_directory(out: &mut tar::Builder<impl Write>, path: &Path) -> io::Result<()> {
    out.append_data(&mut oci::header(EntryType::Directory, 0o755, 0), path, io::empty())
}

fn append_entry<R: Read>(out: &mut tar::Builder<impl Write>, root: &Path, entry: &mut tar::Entry<'_, R>) -> Result<(), OciError> {
    let name = path_of(&entry.path_bytes());
    let target = inside(root, &name).ok_or_else(|| OciError::ForeignEntry { name: name.display().to_string() })?;
    let kind = entry.header().entry_type();
    let mut header = normal_header(entry.header(), kind)?;
    let link = entry.link_name_bytes().map(|link| path_of(&link));
    let attributes = extended_attributes(entry)?;
    let known = matches!(
        kind,
        EntryType::Regular
            | EntryType::Continuous
            | EntryType::GNUSparse
            | EntryType::Directory
            | EntryType::Symlink
            | EntryType::Link
            | EntryType::Char
            | EntryType::Block
            | EntryType::Fifo
    );
    if !known {
        return Err(OciError::ForeignEntry { name: name.display().to_string() });
    }
    if !attributes.is_empty() {
        out.append_pax_extensions(attributes.iter().map(|(key, value)| (key.as_str(), value.as_slice())))?;
    }
    match (kind, link) {
        (EntryType::Symlink, Some(link)) => out.append_link(&mut header, target, link)?,
        (EntryType::Link, Some(link)) => {
            let link = inside(root, &link).ok_or_else(|| OciError::ForeignEntry { name: link.display().to_string() })?;
            out.append_link(&mut header, target, link)?;
        }
        _ => {
            header.set_size(entry.size());
            out.append_data(&mut header, target, entry)?;
        }
    }
    Ok(())
}

/// The same in one dialect: every number written, whatever the layer's author left out. What is sparse has its holes filled.
fn normal_header(given: &tar::Header, kind: EntryType) -> io::Result<tar::Header> {
    let kind = if matches!(kind, EntryType::GNUSparse | EntryType::Continuous) { EntryType::Regular } else { kind };
    let mut header = oci::header(kind, given.mode()?, 0);
    header.set_uid(given.uid().unwrap_or(0));
    header.set_gid(given.gid().unwrap_or(0));
    header.set_mtime(given.mtime().unwrap_or(0));
    if matches!(kind, EntryType::Char | EntryType::Block) {
        header.set_device_major(given.device_major()?.unwrap_or(0))?;
        header.set_device_minor(given.device_minor()?.unwrap_or(0))?;
    }
    Ok(header)
}

/// The attributes that OCI layers carry as PAX records.
fn extended_attributes<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Vec<(String, Vec<u8>)>> {
    let Some(records) = entry.pax_extensions()? else { return Ok(Vec::new()) };
    let mut attributes = Vec::new();
    for record in records {
        let record = record?;
        match record.key() {
            Ok(key) if key.starts_with("SCHILY.xattr.") => attributes.push((key.to_owned(), record.value_bytes().to_vec())),
            _ => {}
        }
    }
    Ok(attributes)
}

#[cfg(unix)]
fn path_of(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

/// `path` below `root`; nothing for a path that leaves it.
fn inside(root: &Path, path: &Path) -> Option<PathBuf> {
    let mut target = root.to_owned();
    for component in path.components() {
        match component {
            Component::Normal(name) => target.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(target)
}

fn decompressed(blob: &Path) -> Result<Box<dyn Read>, OciError> {
    let mut magic = Vec::new();
    File::open(blob)?.take(4).read_to_end(&mut magic)?;
    let file = BufReader::with_capacity(1 << 18, File::open(blob)?);
    if magic.starts_with(GZIP_MAGIC) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(file)));
    }
    if magic.starts_with(ZSTD_MAGIC) {
        let decoder = ruzstd::decoding::StreamingDecoder::new(file).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(file))
}

struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..length).unwrap_or_default());
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leaves_its_layer() {
        let root = Path::new("layers/x/root");

        assert_eq!(inside(root, Path::new("/etc/./passwd")), Some(root.join("etc/passwd")));
        assert_eq!(inside(root, Path::new("./")), Some(root.to_owned()));
        assert_eq!(inside(root, Path::new("a/../../b")), None);
    }
}
