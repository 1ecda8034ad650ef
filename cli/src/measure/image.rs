//! The measured files of an image, read and hashed, or the digests its builder left.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use dstack_manifest::{ImageMetadata, MeasurementDocument, OsImageHash};
use dstack_measurement::{
    Digest384, PageAddOrder, Sha384, VmShape,
    checksum::{ChecksumFile, TDX_DOCUMENT_NAME},
    kernel::{self, KernelPlacement, SetupHeader},
    kernel_blob::KernelBlob,
    mrtd::mrtd,
    td_hob::TdHobWitness,
    tdvf::Tdvf,
    tdx::{self, ExpectedLaunch, HostTables, ImageMeasurement, ImageParts, InitrdDigest, LaunchError, OvmfVariant},
};
use dstack_os_image::ImageStore;

use crate::failure::{Failure, Outcome};

const METADATA: &str = "metadata.json";
const CHECKSUMS: &str = "sha256sum.txt";
const MAX_SMALL_FILE: u64 = 1 << 20;
const MAX_BOOT_FILE: u64 = 512 << 20;
const CHUNK: usize = 256 << 10;

/// An image directory. Nothing of it is trusted or checked against a hash; its files are measured as they are.
#[derive(Debug)]
pub(super) struct ImageDir {
    dir: PathBuf,
    pub(super) name: String,
    pub(super) metadata: ImageMetadata,
    /// SHA-256 of `sha256sum.txt`, where the image has one.
    pub(super) os_image_hash: Option<OsImageHash>,
}

impl ImageDir {
    /// An image directory, or a name in the local store.
    ///
    /// Errors: no such image, or metadata that cannot be read.
    pub(super) fn open(text: &str) -> Outcome<Self> {
        let path = Path::new(text);
        let dir = if path.join(METADATA).is_file() {
            path.to_owned()
        } else {
            ImageStore::new(crate::os::store(None)?).load(text)?.dir().to_owned()
        };
        let metadata = read(&dir.join(METADATA), MAX_SMALL_FILE)?;
        let metadata: ImageMetadata = serde_json::from_slice(&metadata).map_err(|error| {
            Failure::new("measure/metadata", format!("{}: {error}", dir.join(METADATA).display()), "name the directory of an OS image")
        })?;
        let checksums = dir.join(CHECKSUMS);
        let os_image_hash = if checksums.is_file() {
            let bytes = read(&checksums, MAX_SMALL_FILE)?;
            let parsed = ChecksumFile::parse(&bytes)
                .map_err(|error| Failure::new("measure/checksums", format!("{}: {error}", checksums.display()), "fetch the image again"))?;
            Some(parsed.os_image_hash())
        } else {
            None
        };
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { dir, name, metadata, os_image_hash })
    }

    /// A file beside the metadata, by the name these give it.
    pub(super) fn file(&self, name: &str) -> Outcome<PathBuf> {
        let is_plain = !name.is_empty() && !name.contains('/') && !name.starts_with('.');
        let refuse =
            || Failure::new("measure/metadata", format!("{name:?} is not the name of a file of the image"), "fetch the image again");
        if is_plain { Ok(self.dir.join(name)) } else { Err(refuse()) }
    }

    /// The document of the image's builder. `None`: it has none, or has one that does not belong to it.
    pub(super) fn document(&self) -> Option<ImageMeasurement> {
        let small = |name| read(&self.dir.join(name), MAX_SMALL_FILE).ok();
        let document = MeasurementDocument { checksum_file: small(CHECKSUMS)?, measurement: small(TDX_DOCUMENT_NAME)? };
        ImageMeasurement::from_bound_document(&document, &self.os_image_hash?).ok()
    }
}

/// What the registers are computed from.
#[derive(Debug)]
pub(super) enum Material {
    /// The files.
    Files(Box<Files>),
    /// The digests of the builder.
    Document(Box<ImageMeasurement>),
}

/// The measured files of an image.
#[derive(Debug)]
pub(super) struct Files {
    firmware: Vec<u8>,
    kernel: Vec<u8>,
    initrd: InitrdDigest,
    cmdline: String,
    ovmf: OvmfVariant,
    blob: Option<KernelBlob>,
}

impl Material {
    /// Reads and hashes the files; the initrd on a second CPU, where there is one.
    pub(super) fn read(image: &ImageDir, ovmf: OvmfVariant) -> Outcome<Self> {
        let metadata = &image.metadata;
        let (firmware, kernel, initrd) = (image.file(&metadata.bios)?, image.file(&metadata.kernel)?, image.file(&metadata.initrd)?);
        let (initrd, firmware, kernel) = std::thread::scope(|scope| {
            let initrd = scope.spawn(|| hash_file(&initrd));
            let (firmware, kernel) = (read(&firmware, MAX_BOOT_FILE), read(&kernel, MAX_BOOT_FILE));
            (initrd.join(), firmware, kernel)
        });
        let initrd = initrd.map_err(|_| Failure::new("cli/internal", "hashing the initrd was interrupted", "report this defect"))?;
        let cmdline = metadata.cmdline.clone();
        let blob = image.document().and_then(|document| document.unpatched_kernel).map(|kernel| kernel.blob);
        Ok(Self::Files(Box::new(Files { firmware: firmware?, kernel: kernel?, initrd: initrd?, cmdline, ovmf, blob })))
    }

    pub(super) fn launch(&self, shape: &VmShape, host: HostTables) -> Result<ExpectedLaunch, LaunchError> {
        match self {
            Self::Files(files) => tdx::expected_from_parts(&files.parts(), shape, host),
            Self::Document(document) => tdx::expected(document, shape, host),
        }
    }

    /// MRTD with pages added in `order`.
    pub(super) fn mrtd(&self, order: PageAddOrder) -> Option<Digest384> {
        match self {
            Self::Files(files) => Some(mrtd(&Tdvf::parse(&files.firmware).ok()?, order)),
            Self::Document(document) => Some(document.mrtd(order)),
        }
    }

    /// First event of RTMR1 under another treatment of the kernel by QEMU. `None`: the files are not at hand.
    pub(super) fn kernel(&self, memory_size: u64, header: SetupHeader) -> Option<Digest384> {
        match self {
            Self::Files(files) => {
                kernel::measure(&files.kernel, files.initrd.len, &files.cmdline, KernelPlacement { memory_size, header }).ok()
            }
            Self::Document(_) => None,
        }
    }
}

impl Files {
    /// The memory map of the firmware.
    pub(super) fn witness(&self) -> Option<TdHobWitness> {
        TdHobWitness::from_tdvf(&Tdvf::parse(&self.firmware).ok()?).ok()
    }

    fn parts(&self) -> ImageParts<'_> {
        ImageParts {
            firmware: &self.firmware,
            kernel: &self.kernel,
            initrd: self.initrd,
            cmdline: &self.cmdline,
            ovmf: self.ovmf,
            blob: self.blob,
        }
    }
}

/// The whole file, if it is not too long.
pub(super) fn read(path: &Path, limit: u64) -> Outcome<Vec<u8>> {
    let failed = |error: &std::io::Error| Failure::io("reading", path, error);
    let mut file = File::open(path).map_err(|error| failed(&error))?;
    let length = file.metadata().map_err(|error| failed(&error))?.len();
    if length > limit {
        return Err(Failure::new(
            "measure/file",
            format!("{} has {length} bytes, at most {limit} are read", path.display()),
            "check the path",
        ));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    file.by_ref().take(limit).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    Ok(bytes)
}

fn hash_file(path: &Path) -> Outcome<InitrdDigest> {
    let failed = |error: &std::io::Error| Failure::io("reading", path, error);
    let mut file = File::open(path).map_err(|error| failed(&error))?;
    let (mut hash, mut len) = (Sha384::new(), 0_usize);
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = file.read(&mut chunk).map_err(|error| failed(&error))?;
        let Some(data) = chunk.get(..count).filter(|data| !data.is_empty()) else { break };
        hash.update(data);
        len = len.saturating_add(count);
    }
    if len > kernel::MAX_FILE_LEN {
        return Err(Failure::new("measure/file", format!("{} has {len} bytes, which is too much", path.display()), "check the path"));
    }
    Ok(InitrdDigest { sha384: hash.finish(), len })
}
