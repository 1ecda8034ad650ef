//! The launch digest: one hash chain over every page the VMM gives the guest before it runs.

use super::firmware::{Section, SectionKind, SevFirmware};
use super::kernel_hashes::KernelHashes;
use super::{CpuSignature, vmsa};
use crate::{Digest384, sha384};

const PAGE: usize = 4096;
const PAGE_INFO_LEN: u16 = 0x70;
/// Address under which the firmware of the platform records vCPU state pages.
const VMSA_GPA: u64 = 0xffff_ffff_f000;
/// No content: zero pages and pages that the platform's firmware fills.
const NO_CONTENT: Digest384 = [0; 48];
/// Firmware is mapped so that it ends here.
const FOUR_GIB: u64 = 1 << 32;
/// Largest VM that is measured.
const MAX_VCPUS: u32 = 4096;

/// Why a launch cannot be predicted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnpLaunchError {
    /// No vCPU, or more than are measured.
    #[error("a VM of {vcpus} vCPUs cannot be measured, only 1 to {MAX_VCPUS}")]
    VcpuCount {
        /// The number.
        vcpus: u32,
    },
    /// A kernel is given and the firmware has no place for its hashes: it would not be measured.
    #[error("the firmware has no page for the hashes of a kernel, which would then not be measured")]
    KernelNotMeasured,
    /// The firmware does not say where further vCPUs start.
    #[error("the firmware does not say where further vCPUs start")]
    NoResetVector,
    /// Features without the one that stands for SNP.
    #[error("guest features {0:#x} do not have the bit for SEV-SNP")]
    NotSnp(u64),
}

/// `SEV_FEATURES` of a vCPU: what the guest may rely on and what the hypervisor may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestFeatures(u64);

impl GuestFeatures {
    /// SEV-SNP alone.
    pub const SNP: Self = Self(1);
    /// SEV-SNP, and debug registers that the hypervisor cannot change (KVM's default on newer hosts).
    pub const SNP_DEBUG_SWAP: Self = Self(0x21);
    /// Bits that leave the guest at least as protected as without them: SNP, debug swap, prevented host IBS, branch target isolation,
    /// secure TSC, SMT protection.
    const HARMLESS: u64 = 1 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 9 | 1 << 15;

    /// The features `bits`.
    ///
    /// # Errors
    /// [`SnpLaunchError::NotSnp`].
    pub const fn new(bits: u64) -> Result<Self, SnpLaunchError> {
        if bits & 1 == 0 { Err(SnpLaunchError::NotSnp(bits)) } else { Ok(Self(bits)) }
    }

    /// The bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether there is a bit that lowers the guest's protection, or whose effect is not known here. A verifier that takes the features
    /// from the host's configuration must refuse these.
    #[must_use]
    pub const fn weakens_guest(self) -> bool {
        self.0 & !Self::HARMLESS != 0
    }
}

/// The hypervisor; they differ in the registers a vCPU starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Vmm {
    /// QEMU with KVM.
    #[default]
    Qemu,
    /// Amazon EC2.
    Ec2,
    /// Google Compute Engine.
    Gce,
}

/// What of a VM's configuration changes the launch digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnpShape {
    /// vCPUs.
    pub vcpus: u32,
    /// CPU model.
    pub cpu: CpuSignature,
    /// Guest features.
    pub guest_features: GuestFeatures,
    /// Hypervisor.
    pub vmm: Vmm,
}

impl SnpShape {
    /// A VM of `vcpus` vCPUs on QEMU with SEV-SNP and no further feature.
    #[must_use]
    pub const fn new(vcpus: u32, cpu: CpuSignature) -> Self {
        Self { vcpus, cpu, guest_features: GuestFeatures::SNP, vmm: Vmm::Qemu }
    }
}

/// The launch digest after the firmware's own pages and before anything else: `ovmf_hash` of a measurement document.
#[must_use]
pub fn ovmf_hash(firmware: &SevFirmware<'_>) -> Digest384 {
    let mut chain = Chain(NO_CONTENT);
    let start = FOUR_GIB - u64::try_from(firmware.image.len()).unwrap_or(0);
    for (gpa, page) in (start..).step_by(PAGE).zip(firmware.image.chunks_exact(PAGE)) {
        chain.add(PageKind::Normal, gpa, &sha384(page));
    }
    chain.0
}

/// The launch digest of a VM of `shape` that starts `firmware`, and `kernel` if it is booted directly.
///
/// Equals MEASUREMENT of the VM's attestation report.
///
/// # Errors
/// [`SnpLaunchError`].
pub fn launch_digest(firmware: &SevFirmware<'_>, kernel: Option<&KernelHashes>, shape: &SnpShape) -> Result<Digest384, SnpLaunchError> {
    let material = Material {
        ovmf_hash: ovmf_hash(firmware),
        sections: &firmware.sections,
        kernel,
        hashes_table_gpa: firmware.hashes_table_gpa,
        reset_eip: firmware.reset_eip,
    };
    material.launch_digest(shape)
}

/// What the digest is made of, from a firmware file or from a document.
pub(super) struct Material<'a> {
    pub(super) ovmf_hash: Digest384,
    pub(super) sections: &'a [Section],
    pub(super) kernel: Option<&'a KernelHashes>,
    pub(super) hashes_table_gpa: Option<u32>,
    pub(super) reset_eip: Option<u32>,
}

impl Material<'_> {
    pub(super) fn launch_digest(&self, shape: &SnpShape) -> Result<Digest384, SnpLaunchError> {
        if !(1..=MAX_VCPUS).contains(&shape.vcpus) {
            return Err(SnpLaunchError::VcpuCount { vcpus: shape.vcpus });
        }
        let before = self.before_vcpus(shape.vmm)?;
        self.vcpu_chain(before, shape)?.nth(index(shape.vcpus)).ok_or(SnpLaunchError::VcpuCount { vcpus: shape.vcpus })
    }

    /// The digest when every page but the vCPUs' is in.
    pub(super) fn before_vcpus(&self, vmm: Vmm) -> Result<Digest384, SnpLaunchError> {
        let hashes = self.hashes_page()?;
        let mut chain = Chain(self.ovmf_hash);
        for section in self.sections {
            match section.kind {
                SectionKind::SecMemory if vmm == Vmm::Gce => chain.add_pages(PageKind::Unmeasured, section),
                SectionKind::SecMemory | SectionKind::CallingArea => chain.add_pages(PageKind::Zero, section),
                SectionKind::Secrets => chain.add_pages(PageKind::Secrets, section),
                SectionKind::Cpuid if vmm == Vmm::Ec2 => {}
                SectionKind::Cpuid => chain.add_pages(PageKind::Cpuid, section),
                SectionKind::KernelHashes => match &hashes {
                    Some(page) => chain.add(PageKind::Normal, u64::from(section.gpa), &sha384(page)),
                    None => chain.add_pages(PageKind::Zero, section),
                },
            }
        }
        if vmm == Vmm::Ec2 {
            for section in self.sections.iter().filter(|section| section.kind == SectionKind::Cpuid) {
                chain.add_pages(PageKind::Cpuid, section);
            }
        }
        Ok(chain.0)
    }

    /// The digests for one vCPU, two vCPUs and so on.
    pub(super) fn vcpu_chain(
        &self,
        before: Digest384,
        shape: &SnpShape,
    ) -> Result<impl Iterator<Item = Digest384> + use<>, SnpLaunchError> {
        let first = sha384(&vmsa::page(shape, vmsa::BOOT_EIP));
        let further = match self.reset_eip.filter(|eip| *eip != 0) {
            Some(eip) => sha384(&vmsa::page(shape, eip)),
            None if shape.vcpus == 1 => first,
            None => return Err(SnpLaunchError::NoResetVector),
        };
        let mut chain = Chain(before);
        chain.add(PageKind::Vmsa, VMSA_GPA, &first);
        Ok(std::iter::successors(Some(chain), move |chain| {
            let mut next = *chain;
            next.add(PageKind::Vmsa, VMSA_GPA, &further);
            Some(next)
        })
        .map(|chain| chain.0))
    }

    fn hashes_page(&self) -> Result<Option<[u8; PAGE]>, SnpLaunchError> {
        let Some(kernel) = self.kernel else { return Ok(None) };
        let page = self.sections.iter().find(|section| section.kind == SectionKind::KernelHashes);
        let offset = page.zip(self.hashes_table_gpa).and_then(|(page, gpa)| usize::try_from(gpa.checked_sub(page.gpa)?).ok());
        offset.and_then(|offset| kernel.page(offset)).map(Some).ok_or(SnpLaunchError::KernelNotMeasured)
    }
}

/// Position of a VM of `vcpus` in the chain of vCPUs; `vcpus` is at least 1 and small.
fn index(vcpus: u32) -> usize {
    usize::try_from(vcpus.saturating_sub(1)).unwrap_or(usize::MAX)
}

#[derive(Clone, Copy)]
enum PageKind {
    Normal = 1,
    Vmsa = 2,
    Zero = 3,
    Unmeasured = 4,
    Secrets = 5,
    Cpuid = 6,
}

/// The digest as the platform's firmware extends it.
#[derive(Clone, Copy)]
struct Chain(Digest384);

impl Chain {
    /// Adds one page: hash of the digest so far, the page's content digest and its PAGE_INFO. Permissions and the flag for an image of a
    /// migration agent stay zero.
    fn add(&mut self, kind: PageKind, gpa: u64, content: &Digest384) {
        let mut info = Vec::with_capacity(usize::from(PAGE_INFO_LEN));
        info.extend_from_slice(&self.0);
        info.extend_from_slice(content);
        info.extend_from_slice(&PAGE_INFO_LEN.to_le_bytes());
        info.extend_from_slice(&[kind as u8, 0, 0, 0, 0, 0]);
        info.extend_from_slice(&gpa.to_le_bytes());
        self.0 = sha384(&info);
    }

    /// Adds the pages of a section that have no content.
    fn add_pages(&mut self, kind: PageKind, section: &Section) {
        let start = u64::from(section.gpa);
        for gpa in (start..start + u64::from(section.memory_len)).step_by(PAGE) {
            self.add(kind, gpa, &NO_CONTENT);
        }
    }
}
