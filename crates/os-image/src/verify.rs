//! Checks an image directory against what it says about itself.

use std::fs::{self, File};

use dstack_manifest::OsImageHash;
use dstack_measurement::{
    checksum::TDX_DOCUMENT_NAME,
    tdx::{ImageFiles, ImageMeasurement},
};

use crate::{
    image::{DIGEST_NAME, Image, ImageError, METADATA_NAME, read_capped},
    verity,
};

/// Largest file that is read into memory: kernel, initrd or firmware.
const MAX_BOOT_FILE_BYTES: u64 = 512 << 20;

/// An image whose every byte that a VM uses was checked. Built only by [`verify`].
#[derive(Debug, Clone)]
pub struct VerifiedImage {
    image: Image,
}

impl VerifiedImage {
    /// The image.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Its identity.
    #[must_use]
    pub fn os_image_hash(&self) -> OsImageHash {
        self.image.os_image_hash()
    }
}

/// Reads the whole image and checks that
/// `digest.txt` names `sha256sum.txt`; each listed file has the listed hash; firmware, kernel, initrd, metadata and the
/// measurement document are listed; the document is the one these files produce; and the root file system with its
/// hash tree has the dm-verity root of the command line.
///
/// # Errors
/// [`ImageError::Tampered`] with the first mismatch, or [`ImageError::Read`].
pub fn verify(image: &Image) -> Result<VerifiedImage, ImageError> {
    let tampered = |what: String| ImageError::Tampered { image: image.name().to_owned(), what };
    let digest = read_capped(&image.dir().join(DIGEST_NAME), 128)?;
    let digest = String::from_utf8_lossy(&digest);
    if digest.trim() != image.os_image_hash().to_string() {
        return Err(tampered(format!("{DIGEST_NAME} says {}, sha256sum.txt has {}", digest.trim(), image.os_image_hash())));
    }
    let metadata = image.metadata();
    let measured = [METADATA_NAME, &metadata.bios, &metadata.kernel, &metadata.initrd];
    let unlisted = measured.iter().find(|name| !image.checksums().entries().any(|(listed, _)| listed == **name));
    if let Some(name) = unlisted {
        return Err(tampered(format!("{name} is not listed in sha256sum.txt")));
    }
    for (name, _) in image.checksums().entries() {
        let bytes = read_capped(&image.dir().join(name), MAX_BOOT_FILE_BYTES)?;
        image.checksums().check_file(name, &bytes).map_err(|error| image.tampered(&error))?;
    }
    check_measurement(image)?;
    check_rootfs(image)?;
    Ok(VerifiedImage { image: image.clone() })
}

/// The document binds the files only if it was computed from them; a wrong one would make honest launches look foreign.
fn check_measurement(image: &Image) -> Result<(), ImageError> {
    let Some(document) = image.tdx_measurement()? else { return Ok(()) };
    let firmware = read_capped(&image.firmware(), MAX_BOOT_FILE_BYTES)?;
    let kernel = read_capped(&image.kernel(), MAX_BOOT_FILE_BYTES)?;
    let initrd = read_capped(&image.initrd(), MAX_BOOT_FILE_BYTES)?;
    let files = ImageFiles { firmware: &firmware, kernel: &kernel, initrd: &initrd, cmdline: image.cmdline() };
    let tampered = |what: String| ImageError::Tampered { image: image.name().to_owned(), what };
    let mut computed = ImageMeasurement::from_files(&files).map_err(|error| tampered(format!("its files cannot be measured: {error}")))?;
    // Documents of other builders say less.
    if ImageMeasurement::decode(&document.measurement).is_ok_and(|given| given.unpatched_kernel.is_none()) {
        computed.unpatched_kernel = None;
    }
    if computed.encode() == document.measurement {
        return Ok(());
    }
    Err(tampered(format!("{TDX_DOCUMENT_NAME} was not computed from its firmware, kernel, initrd and command line")))
}

fn check_rootfs(image: &Image) -> Result<(), ImageError> {
    let path = image.rootfs();
    let tampered = |what: String| ImageError::Tampered { image: image.name().to_owned(), what };
    let length = fs::metadata(&path).map_err(|source| ImageError::Read { path: path.clone(), source })?.len();
    if length < image.rootfs_bytes() {
        return Err(tampered(format!("{} has {length} bytes, the command line says at least {}", path.display(), image.rootfs_bytes())));
    }
    let mut file = File::open(&path).map_err(|source| ImageError::Read { path: path.clone(), source })?;
    verity::verify(&mut file, image.rootfs_bytes(), &image.verity_root()).map_err(|error| match error {
        verity::VerityError::Io(source) => ImageError::Read { path: path.clone(), source },
        error => tampered(format!("{}: {error}", image.metadata().rootfs)),
    })
}
