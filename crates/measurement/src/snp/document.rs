//! `measurement.snp.cbor`, version 3: what of an image a verifier needs to compute launch digests, without its files.

use dstack_manifest::{OsImageHash, SnpMeasurementDocument};
use serde::{Deserialize, Serialize};

use super::firmware::{Section, SectionKind, SevFirmware, SevFirmwareError, check_sections};
use super::kernel_hashes::{KernelHashes, hash_cmdline};
use super::launch::{GuestFeatures, Material, SnpLaunchError, SnpShape, Vmm, ovmf_hash};
use super::{CpuSignature, UnknownCpuModel};
use crate::Digest384;
use crate::checksum::{SNP_DOCUMENT_NAME, binding_line};
use crate::document_format::{self, DocumentFormatError, VERSION};

/// A command line and 64 sections fit.
const MAX_DOCUMENT_LEN: usize = 16 << 10;
/// CPU model of a configuration that names none.
const DEFAULT_CPU: CpuSignature = CpuSignature::EPYC;

/// Why bytes are not a measurement document, or not this image's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnpDocumentError {
    /// Not such a document, or not this image's.
    #[error(transparent)]
    Format(#[from] DocumentFormatError),
    /// Sections that no firmware can have.
    #[error("memory sections of the measurement document")]
    Sections(#[from] SevFirmwareError),
    /// The firmware described does not measure the kernel.
    #[error("firmware of the image")]
    Firmware(#[source] SnpLaunchError),
    /// The command line has a NUL in it: the VMM would pass only what stands before it.
    #[error("command line of the measurement document contains a NUL")]
    CommandLine,
    /// The VM's CPU model is not known.
    #[error("CPU model of the VM")]
    Cpu(#[from] UnknownCpuModel),
    /// The VM's guest features are none of SEV-SNP.
    #[error("guest features of the VM")]
    Features(#[source] SnpLaunchError),
}

/// The files of an OS image that are measured at launch under SEV-SNP.
#[derive(Debug, Clone, Copy)]
pub struct SnpImageFiles<'a> {
    /// Firmware image with SEV metadata and a place for kernel hashes (`ovmf-sev.fd`).
    pub firmware: &'a [u8],
    /// Kernel.
    pub kernel: &'a [u8],
    /// Initial RAM disk.
    pub initrd: &'a [u8],
    /// Kernel command line, as given to QEMU.
    pub cmdline: &'a str,
}

/// What an image contributes to the launch digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnpImageMeasurement {
    cmdline: String,
    ovmf_hash: Digest384,
    kernel_hash: [u8; 32],
    initrd_hash: [u8; 32],
    hashes_table_gpa: u32,
    reset_eip: u32,
    ovmf_sections: Vec<Section>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    version: u64,
    cmdline: String,
    #[serde(with = "serde_bytes")]
    ovmf_hash: Digest384,
    #[serde(with = "serde_bytes")]
    kernel_hash: [u8; 32],
    #[serde(with = "serde_bytes")]
    initrd_hash: [u8; 32],
    hashes_table_gpa: u32,
    reset_eip: u32,
    ovmf_sections: Vec<WireSection>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSection {
    gpa: u32,
    size: u32,
    #[serde(rename = "type")]
    kind: u32,
}

impl SnpImageMeasurement {
    /// Measures the files of an image.
    ///
    /// # Errors
    /// [`SnpDocumentError::Sections`], [`SnpDocumentError::Firmware`]: the firmware is not one for SEV-SNP with kernel hashes;
    /// [`SnpDocumentError::CommandLine`].
    pub fn from_files(files: &SnpImageFiles<'_>) -> Result<Self, SnpDocumentError> {
        let firmware = SevFirmware::parse(files.firmware)?;
        let hashes = KernelHashes::from_files(files.kernel, files.initrd, files.cmdline);
        let image = Self {
            cmdline: files.cmdline.to_owned(),
            ovmf_hash: ovmf_hash(&firmware),
            kernel_hash: hashes.kernel,
            initrd_hash: hashes.initrd,
            hashes_table_gpa: firmware.hashes_table_gpa.ok_or(SnpDocumentError::Firmware(SnpLaunchError::KernelNotMeasured))?,
            reset_eip: firmware.reset_eip.ok_or(SnpDocumentError::Firmware(SnpLaunchError::NoResetVector))?,
            ovmf_sections: firmware.sections,
        };
        image.check()?;
        Ok(image)
    }

    /// Reads the CBOR document. Only the encoding that [`Self::encode`] writes is accepted.
    ///
    /// # Errors
    /// [`SnpDocumentError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SnpDocumentError> {
        let wire: Wire = document_format::read(bytes, MAX_DOCUMENT_LEN, VERSION)?;
        let image = Self {
            cmdline: wire.cmdline,
            ovmf_hash: wire.ovmf_hash,
            kernel_hash: wire.kernel_hash,
            initrd_hash: wire.initrd_hash,
            hashes_table_gpa: wire.hashes_table_gpa,
            reset_eip: wire.reset_eip,
            ovmf_sections: wire.ovmf_sections.iter().enumerate().map(section).collect::<Result<_, _>>()?,
        };
        document_format::check_encoding(bytes, &image.encode())?;
        image.check()?;
        Ok(image)
    }

    /// Reads the document inside a VM configuration, checks that it belongs to image `os_image_hash` (the checksum file has that hash and
    /// lists the document), and reads the VM's shape beside it.
    ///
    /// Trust: all parts come from the host; the results say what *that image* in *that shape* measures to, not that either is good.
    ///
    /// # Errors
    /// [`SnpDocumentError`].
    pub fn from_bound_document(
        document: &SnpMeasurementDocument,
        os_image_hash: &OsImageHash,
    ) -> Result<(Self, SnpShape), SnpDocumentError> {
        document_format::check_bound(&document.checksum_file, SNP_DOCUMENT_NAME, &document.measurement, os_image_hash)?;
        let cpu = match document.vcpu_type.as_deref() {
            None | Some("") => DEFAULT_CPU,
            Some(name) => name.parse()?,
        };
        let guest_features = GuestFeatures::new(document.guest_features).map_err(SnpDocumentError::Features)?;
        let shape = SnpShape { vcpus: document.vcpus, cpu, guest_features, vmm: Vmm::Qemu };
        Ok((Self::decode(&document.measurement)?, shape))
    }

    /// The bytes of `measurement.snp.cbor`. One value has one encoding.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let sections = self.ovmf_sections.iter();
        document_format::write(&Wire {
            version: VERSION,
            cmdline: self.cmdline.clone(),
            ovmf_hash: self.ovmf_hash,
            kernel_hash: self.kernel_hash,
            initrd_hash: self.initrd_hash,
            hashes_table_gpa: self.hashes_table_gpa,
            reset_eip: self.reset_eip,
            ovmf_sections: sections
                .map(|section| WireSection { gpa: section.gpa, size: section.memory_len, kind: section.kind.number() })
                .collect(),
        })
    }

    /// The line of `sha256sum.txt` that binds the document to the image.
    #[must_use]
    pub fn checksum_line(&self) -> String {
        binding_line(SNP_DOCUMENT_NAME, &self.encode())
    }

    /// Kernel command line.
    #[must_use]
    pub fn cmdline(&self) -> &str {
        &self.cmdline
    }

    /// MEASUREMENT of a VM of `shape` that boots the image.
    ///
    /// # Errors
    /// [`SnpLaunchError::VcpuCount`], [`SnpLaunchError::NoResetVector`].
    pub fn launch_digest(&self, shape: &SnpShape) -> Result<Digest384, SnpLaunchError> {
        self.with_material(|material| material.launch_digest(shape))
    }

    /// The shape, of those QEMU makes with up to `max_vcpus` vCPUs, in which the image measures to `digest`: what to say to somebody whose
    /// VM has another shape than expected. `None`: it is another image, or a shape nobody would use.
    #[must_use]
    pub fn find_shape(&self, digest: &Digest384, max_vcpus: u32) -> Option<SnpShape> {
        let shapes = CpuSignature::ALL.into_iter().flat_map(|cpu| {
            [GuestFeatures::SNP, GuestFeatures::SNP_DEBUG_SWAP]
                .map(|guest_features| SnpShape { guest_features, ..SnpShape::new(max_vcpus, cpu) })
        });
        self.with_material(|material| {
            let before = material.before_vcpus(Vmm::Qemu).ok()?;
            shapes.into_iter().find_map(|shape| {
                let chain = material.vcpu_chain(before, &shape).ok()?;
                let (vcpus, _) = (1..=max_vcpus).zip(chain).find(|(_, candidate)| candidate == digest)?;
                Some(SnpShape { vcpus, ..shape })
            })
        })
    }

    fn with_material<T>(&self, read: impl FnOnce(&Material<'_>) -> T) -> T {
        let kernel = KernelHashes { kernel: self.kernel_hash, initrd: self.initrd_hash, cmdline: hash_cmdline(&self.cmdline) };
        read(&Material {
            ovmf_hash: self.ovmf_hash,
            sections: &self.ovmf_sections,
            kernel: Some(&kernel),
            hashes_table_gpa: Some(self.hashes_table_gpa),
            reset_eip: Some(self.reset_eip),
        })
    }

    fn check(&self) -> Result<(), SnpDocumentError> {
        if self.cmdline.contains('\0') {
            return Err(SnpDocumentError::CommandLine);
        }
        check_sections(&self.ovmf_sections, Some(self.hashes_table_gpa))?;
        self.with_material(|material| material.before_vcpus(Vmm::Qemu)).map(drop).map_err(SnpDocumentError::Firmware)
    }
}

fn section((index, wire): (usize, &WireSection)) -> Result<Section, SevFirmwareError> {
    let kind = SectionKind::from_number(wire.kind).ok_or(SevFirmwareError::UnknownSection { index, kind: wire.kind })?;
    Ok(Section { gpa: wire.gpa, memory_len: wire.size, kind })
}
