//! Container images as a read-only volume that a container engine uses in place: an erofs image with its dm-verity tree.
//!
//! Layout of the file: erofs data, verity superblock and tree, and one last block with the JSON text
//! `{"data_size":N}` padded with zeros. That last block is only a hint where the tree starts: whoever opens the volume
//! knows the root hash from the measured app-compose, and a wrong offset cannot match it.
//! The erofs image holds, as an OCI layout does, `oci-layout`, `index.json` and under `blobs/sha256` the manifests and configurations;
//! but each layer is a directory, `layers/<diff id>/root`, with the whiteouts of overlayfs, and its size in bytes as text in
//! `layers/<diff id>/size`. Nothing has to be unpacked where it is used. The same archives give the same bytes.

mod layers;
mod oci;

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use dstack_api::UserFacing;
use dstack_manifest::Digest32;

pub use oci::{OciError, PackedImage};

use crate::{
    tools::{self, ToolError, Toolbox},
    verity::{self, BLOCK_BYTES, VerityError},
};

/// Why a volume cannot be made or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// The archive is not a usable OCI archive.
    #[error("image archive {}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// The cause.
        #[source]
        source: OciError,
    },
    /// Two archives give one reference to different images.
    #[error("the reference {reference} names two different images")]
    Ambiguous {
        /// The reference.
        reference: String,
    },
    /// The volume's trailer is missing or wrong.
    #[error("{} has no volume trailer", path.display())]
    NoTrailer {
        /// The volume.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// `mkfs.erofs` failed.
    #[error("make the volume's file system")]
    Tool(#[from] ToolError),
    /// The hash tree cannot be made or does not match.
    #[error("hash the volume")]
    Verity(#[from] VerityError),
}

impl UserFacing for VolumeError {
    fn code(&self) -> &'static str {
        match self {
            Self::Archive { .. } => "volume/bad-archive",
            Self::Ambiguous { .. } => "volume/ambiguous-reference",
            Self::NoTrailer { .. } => "volume/no-trailer",
            Self::Io { .. } => "volume/io",
            Self::Tool(error) => error.code(),
            Self::Verity(_) => "volume/tampered",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Archive { .. } => "make it again, for instance with `skopeo copy docker://NAME oci-archive:FILE:NAME`".to_owned(),
            Self::Ambiguous { .. } => "give each image its own reference, or leave out the archive that is not meant".to_owned(),
            Self::NoTrailer { .. } | Self::Verity(_) => "pack the image archive again".to_owned(),
            Self::Io { .. } => "check that the folder exists, is writable and has free space".to_owned(),
            Self::Tool(error) => error.fix(),
        }
    }
}

/// A volume that was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedVolume {
    /// The file, `<verity root>.img` in the folder asked for.
    pub path: PathBuf,
    /// Its dm-verity root: `verity_root` of the app-compose entry.
    pub verity_root: Digest32,
    /// Where the tree starts.
    pub data_bytes: u64,
    /// The images inside, by reference.
    pub images: Vec<PackedImage>,
}

/// Packs OCI archives (tar files with an OCI image layout) into one volume in `folder`.
///
/// The archives are untrusted: names, sizes and digests are checked. `tools`: [`Toolbox::for_volumes`].
///
/// # Errors
/// [`VolumeError`]; nothing is left in `folder`.
pub fn pack(archives: &[&Path], folder: &Path, tools: &Toolbox) -> Result<PackedVolume, VolumeError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| VolumeError::Io { action, path, source }
    };
    fs::create_dir_all(folder).map_err(failed("create", folder))?;
    let work = tempfile::Builder::new().prefix(".volume-").tempdir_in(folder).map_err(failed("create a folder in", folder))?;
    let layout = work.path().join("layout");
    fs::create_dir(&layout).map_err(failed("create", &layout))?;
    let mut images: Vec<PackedImage> = Vec::new();
    for archive in archives {
        let wrap = |source| VolumeError::Archive { path: (*archive).to_owned(), source };
        images.extend(oci::unpack(archive, &layout).map_err(wrap)?);
    }
    images.sort();
    images.dedup();
    if let Some(pair) = images.windows(2).find(|pair| matches!(pair, [a, b] if a.reference == b.reference && !a.reference.is_empty())) {
        return Err(VolumeError::Ambiguous { reference: pair.first().map(|image| image.reference.clone()).unwrap_or_default() });
    }
    let tree = work.path().join("volume.tar");
    write_tree(&layout, &images, &tree).map_err(|source| VolumeError::Archive {
        path: archives.iter().map(|archive| archive.display().to_string()).collect::<Vec<_>>().join(", ").into(),
        source,
    })?;
    let image = work.path().join("volume.img");
    make_erofs(&tree, &image, tools)?;
    let (verity_root, data_bytes) = seal(&image)?;
    let path = folder.join(format!("{verity_root}.img"));
    fs::rename(&image, &path).map_err(failed("write", &path))?;
    Ok(PackedVolume { path, verity_root, data_bytes, images })
}

/// Writes what the volume holds as one tar: users, times, devices and attributes stay as the images have them, whoever packs.
fn write_tree(layout: &Path, images: &[PackedImage], tree: &Path) -> Result<(), OciError> {
    let blobs = layout.join("blobs/sha256");
    let mut out = tar::Builder::new(io::BufWriter::new(File::create(tree)?));
    oci::append_documents(&mut out, &blobs, images)?;
    for (diff_id, blob) in layers::of_images(images, &blobs)? {
        layers::append(&mut out, &diff_id, &blob)?;
    }
    Ok(out.into_inner()?.flush()?)
}

fn make_erofs(tree: &Path, image: &Path, tools: &Toolbox) -> Result<(), ToolError> {
    let mut command = tools.command("mkfs.erofs");
    command.args(["--tar=f", "--aufs", "-zlz4hc,9", "-C65536", "-T0", "--mkfs-time", "-U00000000-0000-0000-0000-000000000000", "-d0"]);
    tools::run(command.arg(image).arg(tree)).map(drop)
}

/// Appends tree and trailer. Returns the root and the size of the data.
fn seal(image: &Path) -> Result<(Digest32, u64), VolumeError> {
    let failed = |source| VolumeError::Io { action: "write", path: image.to_owned(), source };
    let mut file = File::options().read(true).write(true).open(image).map_err(failed)?;
    let data_bytes = file.metadata().map_err(failed)?.len().next_multiple_of(BLOCK_BYTES as u64);
    file.set_len(data_bytes).map_err(failed)?;
    let root = verity::append(&mut file, data_bytes)?;
    let mut trailer = format!("{{\"data_size\":{data_bytes}}}").into_bytes();
    trailer.resize(BLOCK_BYTES, 0);
    file.write_all(&trailer).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    Ok((root, data_bytes))
}

/// Where the hash tree of a volume starts, from its trailer. A hint, not a claim: see the module.
///
/// # Errors
/// [`VolumeError::NoTrailer`], [`VolumeError::Io`].
pub fn data_bytes(volume: &Path) -> Result<u64, VolumeError> {
    let failed = |source| VolumeError::Io { action: "read", path: volume.to_owned(), source };
    let no_trailer = || VolumeError::NoTrailer { path: volume.to_owned() };
    let mut file = File::open(volume).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let start = length.checked_sub(BLOCK_BYTES as u64).ok_or_else(no_trailer)?;
    file.seek(SeekFrom::Start(start)).map_err(failed)?;
    let mut block = Vec::new();
    file.take(BLOCK_BYTES as u64).read_to_end(&mut block).map_err(failed)?;
    let text = block.split(|byte| *byte == 0).next().unwrap_or_default();
    let trailer: Trailer = serde_json::from_slice(text).map_err(|_| no_trailer())?;
    if trailer.data_size < start { Ok(trailer.data_size) } else { Err(no_trailer()) }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Trailer {
    data_size: u64,
}

/// Checks that a volume has the dm-verity root `expected`.
///
/// # Errors
/// [`VolumeError::Verity`] if it has not.
pub fn verify(volume: &Path, expected: &Digest32) -> Result<(), VolumeError> {
    let data_bytes = data_bytes(volume)?;
    let mut file = File::open(volume).map_err(|source| VolumeError::Io { action: "read", path: volume.to_owned(), source })?;
    Ok(verity::verify(&mut file, data_bytes, expected)?)
}
