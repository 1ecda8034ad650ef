//! The tables with a fixed layout: FADT, MADT, MCFG, WAET and RSDT.

use super::cpus::local_apic;
use super::dsdt::ECAM_BASE;
use super::machine::Machine;
use super::profile::InterruptTrigger;

/// Length of the header that every table but the FACS has.
pub(super) const HEADER_LEN: usize = 36;
/// Port of the power management registers, as OVMF programs it.
const PM_BASE: u32 = 0x600;
/// WBINVD and C1 work, no fixed sleep button, the clock can wake from S4, there is a reset register, the platform clock may be used.
const FADT_FLAGS: u32 = 0x0000_84a5;
/// The guest must use clusters of APICs; QEMU says so for more than eight CPUs.
const FADT_APIC_CLUSTERS: u32 = 1 << 18;
const RESET_PORT: u64 = 0x0cf9;
const RESET_VALUE: u8 = 0x0f;

/// A table with its header; the checksum stays zero until the firmware fills it in.
pub(super) fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER_LEN + body.len()).unwrap_or(u32::MAX);
    [&signature, len.to_le_bytes().as_slice(), &[revision, 0], b"BOCHS BXPC    ", &1_u32.to_le_bytes(), b"BXPC", &1_u32.to_le_bytes(), body]
        .concat()
}

/// Firmware control structure; only signature and length are set.
pub(super) fn facs() -> Vec<u8> {
    [b"FACS".as_slice(), &64_u32.to_le_bytes(), &[0; 56]].concat()
}

/// A generic address: system I/O port `address`, `bits` wide. An all-zero one means absent.
fn port(address: u64, bits: u8) -> Vec<u8> {
    [&[1, bits, 0, 0], address.to_le_bytes().as_slice()].concat()
}

/// FADT revision 3. System management mode is off, so there is no command port.
pub(super) fn fadt(machine: &Machine, facs: u32, dsdt: u32) -> Vec<u8> {
    const ABSENT: [u8; 12] = [0; 12];
    let flags = FADT_FLAGS | if machine.cpu_count > 8 { FADT_APIC_CLUSTERS } else { 0 };
    let u32s = |values: &[u32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let pm = |offset: u32, bits| port(u64::from(PM_BASE + offset), bits);
    let body = [
        u32s(&[facs, dsdt]),
        vec![1, 0, 9, 0], // interrupt model, profile, SCI interrupt
        u32s(&[0]),       // SMI command port
        vec![0, 0, 0, 0], // ACPI enable and disable, S4, P-state control
        u32s(&[PM_BASE, 0, PM_BASE + 4, 0, 0, PM_BASE + 8, PM_BASE + 0x20, 0]),
        vec![4, 2, 0, 4, 16, 0, 0, 0], // lengths of those blocks, GPE1 base, C-state control
        vec![0xff, 0x0f, 0xff, 0x0f],  // C2 and C3 latency: not supported
        vec![0; 8],                    // cache flush, duty cycle, day and month alarm
        vec![0x32],                    // century
        vec![2, 0, 0],                 // IA-PC boot flags: 8042 present
        u32s(&[flags]),
        port(RESET_PORT, 8),
        vec![RESET_VALUE, 0, 0, 0],
        [u64::from(facs).to_le_bytes(), u64::from(dsdt).to_le_bytes()].concat(),
        pm(0, 32),
        ABSENT.to_vec(),
        pm(4, 16),
        [ABSENT, ABSENT].concat(),
        pm(8, 32),
        pm(0x20, 128),
        ABSENT.to_vec(),
    ];
    table(*b"FACP", 3, &body.concat())
}

/// MADT revision 3: local APICs, the I/O APIC, and how legacy interrupts reach it.
pub(super) fn madt(machine: &Machine) -> Vec<u8> {
    /// Legacy interrupts that keep their number but are level triggered, active high.
    const LEVEL_INTERRUPTS: [u8; 4] = [5, 9, 10, 11];
    const ACTIVE_HIGH_LEVEL: u8 = 0x0d;
    const ACTIVE_HIGH_EDGE: u8 = 0x05;
    let mut body = [0xfee0_0000_u32.to_le_bytes(), u32::from(machine.pic).to_le_bytes()].concat();
    for cpu in 0..machine.cpu_count {
        body.extend(local_apic(cpu));
    }
    body.extend([1, 12, 0, 0]);
    body.extend([0xfec0_0000_u32.to_le_bytes(), 0_u32.to_le_bytes()].concat());
    // The timer arrives at pin 2; its flags say: as the bus does.
    match machine.trigger {
        InterruptTrigger::Level => {
            body.extend(interrupt_override(0, 2, 0));
            body.extend(LEVEL_INTERRUPTS.iter().flat_map(|line| interrupt_override(*line, *line, ACTIVE_HIGH_LEVEL)));
        }
        InterruptTrigger::Edge => {
            body.extend(interrupt_override(0, 2, ACTIVE_HIGH_EDGE));
            body.extend((1..16).flat_map(|line| interrupt_override(line, line, ACTIVE_HIGH_EDGE)));
        }
    }
    // Every CPU has its non-maskable interrupt at pin 1.
    body.extend([4, 6, 0xff, 0, 0, 1]);
    table(*b"APIC", 3, &body)
}

/// Legacy interrupt `line` arrives at `pin` of the I/O APIC.
fn interrupt_override(line: u8, pin: u8, flags: u8) -> [u8; 10] {
    [2, 10, 0, line, pin, 0, 0, 0, flags, 0]
}

/// Where the PCI Express configuration space lies: segment 0, buses 0 to 255.
pub(super) fn mcfg() -> Vec<u8> {
    let entry = [u64::from(ECAM_BASE).to_le_bytes().as_slice(), &[0, 0, 0, 0xff], &[0; 4]].concat();
    table(*b"MCFG", 1, &[[0; 8].as_slice(), &entry].concat())
}

/// The ACPI timer needs no double read.
pub(super) fn waet() -> Vec<u8> {
    table(*b"WAET", 1, &2_u32.to_le_bytes())
}

/// RSDT with the offsets of the other tables in place of their addresses.
pub(super) fn rsdt(offsets: &[u32]) -> Vec<u8> {
    table(*b"RSDT", 1, &offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect::<Vec<u8>>())
}
