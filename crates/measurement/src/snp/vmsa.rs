//! The state of a vCPU at start: the page that is encrypted and measured for each.

use super::launch::{SnpShape, Vmm};

pub(super) const PAGE_LEN: usize = 4096;
/// Where the first vCPU starts; the others start where the firmware says.
pub(super) const BOOT_EIP: u32 = 0xffff_fff0;

/// Registers in which hypervisors differ.
struct Initial {
    cs_attributes: u16,
    ss_attributes: u16,
    tr_attributes: u16,
    page_attribute_table: u64,
    rdx: u64,
    mxcsr: u32,
    x87_control: u16,
}

impl Initial {
    fn of(shape: &SnpShape, eip: u32) -> Self {
        let kvm = Self {
            cs_attributes: 0x9b,
            ss_attributes: 0x93,
            tr_attributes: 0x8b,
            page_attribute_table: 0x0007_0406_0007_0406,
            rdx: u64::from(shape.cpu.value()),
            mxcsr: 0x1f80,
            x87_control: 0x37f,
        };
        match shape.vmm {
            Vmm::Qemu => kvm,
            Vmm::Ec2 => Self {
                cs_attributes: if eip == BOOT_EIP { 0x9a } else { 0x9b },
                ss_attributes: 0x92,
                tr_attributes: 0x83,
                rdx: 0x600,
                mxcsr: 0,
                x87_control: 0,
                ..kvm
            },
            Vmm::Gce => Self { page_attribute_table: 0x0007_0106, rdx: 0x600, mxcsr: 0, x87_control: 0, ..kvm },
        }
    }
}

/// The save area of a vCPU that starts at `eip`. Offsets: APM volume 2, table B-4.
pub(super) fn page(shape: &SnpShape, eip: u32) -> [u8; PAGE_LEN] {
    let initial = Initial::of(shape, eip);
    let mut page = [0; PAGE_LEN];
    let mut put = |offset: usize, bytes: &[u8]| {
        if let Some(place) = page.get_mut(offset..offset + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    let data = segment(0, 0x93, 0);
    for offset in [0x000, 0x030, 0x040, 0x050] {
        put(offset, &data); // ES, DS, FS, GS
    }
    put(0x010, &segment(0xf000, initial.cs_attributes, eip & 0xffff_0000));
    put(0x020, &segment(0, initial.ss_attributes, 0));
    put(0x060, &segment(0, 0, 0)); // GDTR
    put(0x070, &segment(0, 0x82, 0)); // LDTR
    put(0x080, &segment(0, 0, 0)); // IDTR
    put(0x090, &segment(0, initial.tr_attributes, 0));
    put(0x0d0, &0x1000_u64.to_le_bytes()); // EFER.SVME, set by KVM
    put(0x148, &0x40_u64.to_le_bytes()); // CR4.MCE, set by KVM
    put(0x158, &0x10_u64.to_le_bytes()); // CR0
    put(0x160, &0x400_u64.to_le_bytes()); // DR7
    put(0x168, &0xffff_0ff0_u64.to_le_bytes()); // DR6
    put(0x170, &2_u64.to_le_bytes()); // RFLAGS
    put(0x178, &u64::from(eip & 0xffff).to_le_bytes()); // RIP
    put(0x268, &initial.page_attribute_table.to_le_bytes());
    put(0x310, &initial.rdx.to_le_bytes());
    put(0x3b0, &shape.guest_features.bits().to_le_bytes());
    put(0x3e8, &1_u64.to_le_bytes()); // XCR0
    put(0x408, &initial.mxcsr.to_le_bytes());
    put(0x410, &initial.x87_control.to_le_bytes());
    page
}

/// Selector, attributes, limit of 64 KiB, base.
fn segment(selector: u16, attributes: u16, base: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    let (low, high) = bytes.split_at_mut(8);
    low.copy_from_slice(&(u64::from(selector) | u64::from(attributes) << 16 | 0xffff << 32).to_le_bytes());
    high.copy_from_slice(&u64::from(base).to_le_bytes());
    bytes
}
