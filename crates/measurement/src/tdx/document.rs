//! `measurement.tdx.cbor`, versions 3 and 4: what of an image a verifier needs, without its files.

use std::str::FromStr;

use dstack_manifest::{MeasurementDocument, OsImageHash};
use serde::{Deserialize, Serialize};

use super::{ImageError, ImageFiles};
use crate::checksum::{TDX_DOCUMENT_NAME, binding_line};
use crate::document_format::{self, DocumentFormatError, VERSION};
use crate::kernel::{self, KernelPlacement, MAX_FILE_LEN, SetupHeader};
use crate::kernel_blob::KernelBlob;
use crate::mrtd::mrtd;
use crate::td_hob::{TdHobError, TdHobWitness};
use crate::tdvf::{SectionKind, Tdvf};
use crate::{Digest384, PageAddOrder, sha384};

const MAX_DOCUMENT_LEN: usize = 4096;
/// Version 4 has the unpatched kernel as well.
const NEWEST_VERSION: u64 = 4;
/// A VM of this size has the kernel addresses of every VM with 2 GiB below 4 GiB.
const DOCUMENT_MEMORY_SIZE: u64 = 1 << 31;
/// SHA-384 of the variable store of a 4 MiB OVMF build, `OVMF_VARS_4M.fd`.
pub(super) const STOCK_CFV_DIGEST: Digest384 = [
    0x34, 0x4b, 0xc5, 0x1c, 0x98, 0x0b, 0xa6, 0x21, 0xaa, 0xa0, 0x0d, 0xa3, 0xed, 0x74, 0x36, 0xf7, 0xd6, 0xe5, 0x49, 0x19, 0x7d, 0xfe,
    0x69, 0x95, 0x15, 0xdf, 0xa2, 0xc6, 0x58, 0x3d, 0x95, 0xe6, 0x41, 0x2a, 0xf2, 0x1c, 0x09, 0x7d, 0x47, 0x31, 0x55, 0x87, 0x5f, 0xfd,
    0x56, 0x1d, 0x67, 0x90,
];

/// Why bytes are not a measurement document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// Not such a document, or not this image's.
    #[error(transparent)]
    Format(#[from] DocumentFormatError),
    /// The memory map inside is not valid.
    #[error("memory map in the measurement document")]
    MemoryMap(#[from] TdHobError),
}

/// Which events the firmware logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OvmfVariant {
    /// OVMF before edk2-stable202505 with the stock 4 MiB variable store.
    #[serde(rename = "pre202505")]
    Pre202505,
    /// OVMF from edk2-stable202505 on. Measures two items of `fw_cfg`, the SMBIOS structures and two boot entries more. The document
    /// format has no name for it.
    #[serde(skip)]
    Since202505,
}

impl FromStr for OvmfVariant {
    type Err = UnknownOvmfVariant;

    /// Reads the name in an image's metadata: `pre202505`, or `since202505`, which is ours.
    fn from_str(text: &str) -> Result<Self, UnknownOvmfVariant> {
        match text {
            "pre202505" => Ok(Self::Pre202505),
            "since202505" => Ok(Self::Since202505),
            other => Err(UnknownOvmfVariant(other.chars().take(64).collect())),
        }
    }
}

/// A firmware whose events are not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("events of firmware {0:?} are not known, only those of pre202505 and since202505")]
pub struct UnknownOvmfVariant(String);

/// What an image contributes to MRTD and RTMR0 to RTMR2 of a TD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageMeasurement {
    /// SHA-384 of the command line as the EFI stub sees it.
    pub cmdline_sha384: Digest384,
    /// Authenticode SHA-384 of the kernel, patched by QEMU before 10.2 for a VM whose memory below 4 GiB is 2 GiB.
    pub kernel_authenticode: Digest384,
    /// SHA-384 of the initrd.
    pub initrd_sha384: Digest384,
    /// Which events the firmware logs.
    pub ovmf: OvmfVariant,
    /// MRTD with pages added in a single pass.
    pub mrtd_single_pass: Digest384,
    /// MRTD with pages added in two passes.
    pub mrtd_two_pass: Digest384,
    /// Memory accepted before the firmware starts.
    pub td_hob: TdHobWitness,
    /// The kernel where QEMU leaves it as it is; documents of version 3 do not tell.
    pub unpatched_kernel: Option<UnpatchedKernel>,
}

/// A kernel as its file is, and whether this firmware starts it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpatchedKernel {
    /// Authenticode SHA-384 of the file.
    pub authenticode: Digest384,
    /// The copy that the firmware takes where QEMU offers two.
    pub blob: KernelBlob,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    version: u64,
    image: WireImage,
    tdvf: WireTdvf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireImage {
    #[serde(with = "serde_bytes")]
    cmdline_sha384: Digest384,
    #[serde(with = "serde_bytes")]
    kernel_authenticode: Digest384,
    #[serde(with = "serde_bytes", default, skip_serializing_if = "Option::is_none")]
    kernel_authenticode_unpatched: Option<Digest384>,
    #[serde(with = "serde_bytes")]
    initrd_sha384: Digest384,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireTdvf {
    ovmf: OvmfVariant,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kernel_blob: Option<KernelBlob>,
    mrtd: WireMrtd,
    #[serde(with = "serde_bytes")]
    td_hob: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireMrtd {
    #[serde(with = "serde_bytes")]
    single_pass: Digest384,
    #[serde(with = "serde_bytes")]
    two_pass: Digest384,
}

impl ImageMeasurement {
    /// Measures the files of an image.
    ///
    /// The format has one name for firmware events, [`OvmfVariant::Pre202505`], and takes the stock variable store and a kernel
    /// with five-level paging for granted. [`check_document`] tells whether that holds; a builder of images should ask it.
    ///
    /// # Errors
    /// [`ImageError`]: a file is not what it should be, or the firmware is not a known OVMF.
    pub fn from_files(files: &ImageFiles<'_>) -> Result<Self, ImageError> {
        let tdvf = Tdvf::parse(files.firmware)?;
        if files.initrd.len() > MAX_FILE_LEN {
            return Err(ImageError::InitrdTooLarge { len: files.initrd.len() });
        }
        let kernel = |header| {
            kernel::measure(files.kernel, files.initrd.len(), files.cmdline, KernelPlacement { memory_size: DOCUMENT_MEMORY_SIZE, header })
        };
        let blob = KernelBlob::of_firmware(files.firmware);
        Ok(Self {
            cmdline_sha384: measure_cmdline(files.cmdline, OvmfVariant::Pre202505),
            kernel_authenticode: kernel(SetupHeader::Document)?,
            unpatched_kernel: Some(UnpatchedKernel { authenticode: kernel(SetupHeader::Unchanged)?, blob }),
            initrd_sha384: sha384(files.initrd),
            ovmf: OvmfVariant::Pre202505,
            mrtd_single_pass: mrtd(&tdvf, PageAddOrder::SinglePass),
            mrtd_two_pass: mrtd(&tdvf, PageAddOrder::TwoPass),
            td_hob: TdHobWitness::from_tdvf(&tdvf)?,
        })
    }

    /// Reads the CBOR document, of version 3 or 4. Only the encoding that [`Self::encode`] writes is accepted.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DocumentError> {
        let wire: Wire = document_format::read(bytes, MAX_DOCUMENT_LEN, NEWEST_VERSION)?;
        let unpatched = wire.image.kernel_authenticode_unpatched.zip(wire.tdvf.kernel_blob);
        let measurement = Self {
            cmdline_sha384: wire.image.cmdline_sha384,
            kernel_authenticode: wire.image.kernel_authenticode,
            initrd_sha384: wire.image.initrd_sha384,
            ovmf: wire.tdvf.ovmf,
            mrtd_single_pass: wire.tdvf.mrtd.single_pass,
            mrtd_two_pass: wire.tdvf.mrtd.two_pass,
            td_hob: TdHobWitness::decode(&wire.tdvf.td_hob)?,
            unpatched_kernel: unpatched.map(|(authenticode, blob)| UnpatchedKernel { authenticode, blob }),
        };
        document_format::check_encoding(bytes, &measurement.encode())?;
        Ok(measurement)
    }

    /// Reads the document inside a VM configuration and checks that it belongs to image `os_image_hash`: the checksum file
    /// has that hash and lists the document.
    ///
    /// Trust: both parts come from the host; the result says what *that image* measures to, not that the image is good.
    ///
    /// # Errors
    /// [`DocumentFormatError::NotBound`] and those of [`Self::decode`].
    pub fn from_bound_document(document: &MeasurementDocument, os_image_hash: &OsImageHash) -> Result<Self, DocumentError> {
        document_format::check_bound(&document.checksum_file, TDX_DOCUMENT_NAME, &document.measurement, os_image_hash)?;
        Self::decode(&document.measurement)
    }

    /// The bytes of `measurement.tdx.cbor`. One value has one encoding.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        document_format::write(&Wire {
            version: if self.unpatched_kernel.is_some() { NEWEST_VERSION } else { VERSION },
            image: WireImage {
                cmdline_sha384: self.cmdline_sha384,
                kernel_authenticode: self.kernel_authenticode,
                kernel_authenticode_unpatched: self.unpatched_kernel.map(|kernel| kernel.authenticode),
                initrd_sha384: self.initrd_sha384,
            },
            tdvf: WireTdvf {
                ovmf: self.ovmf,
                kernel_blob: self.unpatched_kernel.map(|kernel| kernel.blob),
                mrtd: WireMrtd { single_pass: self.mrtd_single_pass, two_pass: self.mrtd_two_pass },
                td_hob: self.td_hob.encode(),
            },
        })
    }

    /// The line of `sha256sum.txt` that binds the document to the image.
    #[must_use]
    pub fn checksum_line(&self) -> String {
        binding_line(TDX_DOCUMENT_NAME, &self.encode())
    }

    /// MRTD for pages added in `order`.
    #[must_use]
    pub fn mrtd(&self, order: PageAddOrder) -> Digest384 {
        match order {
            PageAddOrder::SinglePass => self.mrtd_single_pass,
            PageAddOrder::TwoPass => self.mrtd_two_pass,
        }
    }
}

/// Digest of the command line: UTF-16 with the terminator and the initrd option that OVMF adds, behind it or, later, in front.
pub(super) fn measure_cmdline(cmdline: &str, ovmf: OvmfVariant) -> Digest384 {
    let text = match ovmf {
        OvmfVariant::Pre202505 => format!("{cmdline} initrd=initrd\0"),
        OvmfVariant::Since202505 => format!("initrd=initrd {cmdline}\0"),
    };
    sha384(&text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>())
}

/// Which events `firmware` logs, judged by its variable store.
///
/// # Errors
/// [`ImageError::UnknownVariableStore`] when the document format cannot express this firmware; those of [`Tdvf::parse`].
pub fn identify_ovmf(firmware: &[u8]) -> Result<OvmfVariant, ImageError> {
    let tdvf = Tdvf::parse(firmware)?;
    let digest = tdvf.only(SectionKind::ConfigurationFirmwareVolume).map_or([0; 48], |store| sha384(store.data));
    if digest == STOCK_CFV_DIGEST {
        return Ok(OvmfVariant::Pre202505);
    }
    Err(ImageError::UnknownVariableStore { digest: hex::encode(digest) })
}

/// Checks that the document of `files` predicts what QEMU and the firmware really do with them.
///
/// # Errors
/// [`ImageError::UnknownVariableStore`], [`ImageError::UnsupportedKernel`]: [`super::expected_from_files`] still predicts such an image, a document
/// cannot; and those of [`ImageMeasurement::from_files`].
pub fn check_document(files: &ImageFiles<'_>) -> Result<(), ImageError> {
    identify_ovmf(files.firmware)?;
    let measure = |header| {
        kernel::measure(files.kernel, files.initrd.len(), files.cmdline, KernelPlacement { memory_size: DOCUMENT_MEMORY_SIZE, header })
    };
    if measure(SetupHeader::Qemu)? == measure(SetupHeader::Document)? { Ok(()) } else { Err(ImageError::UnsupportedKernel) }
}
