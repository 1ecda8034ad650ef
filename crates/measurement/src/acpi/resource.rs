//! Resource descriptors (ACPI 6.5, section 6.4) inside a `ResourceTemplate`.

use super::aml::{Aml, buffer};
use super::profile::InterruptTrigger;

/// A list of descriptors with its end tag; QEMU leaves the checksum zero.
pub(super) fn template(descriptors: &[Vec<u8>]) -> Aml {
    buffer(&[descriptors.concat().as_slice(), &[0x79, 0]].concat())
}

/// Fixed 16-bit I/O ports.
pub(super) fn io(port: u16, alignment: u8, len: u8) -> Vec<u8> {
    [&[0x47, 1], port.to_le_bytes().as_slice(), &port.to_le_bytes(), &[alignment, len]].concat()
}

/// One legacy interrupt line.
pub(super) fn irq(line: u8) -> Vec<u8> {
    [&[0x22], (1_u16 << line).to_le_bytes().as_slice()].concat()
}

/// One legacy interrupt line that devices share: level triggered, active low.
pub(super) fn shared_irq(line: u8) -> Vec<u8> {
    [&[0x23], (1_u16 << line).to_le_bytes().as_slice(), &[0x18]].concat()
}

/// Shared, active high interrupts.
pub(super) fn interrupts(lines: &[u32], trigger: InterruptTrigger) -> Vec<u8> {
    let flags = match trigger {
        InterruptTrigger::Level => 0x09,
        InterruptTrigger::Edge => 0x0b,
    };
    let len = 2 + 4 * lines.len() as u16;
    let mut out = vec![0x89];
    out.extend(len.to_le_bytes());
    out.extend([flags, lines.len() as u8]);
    out.extend(lines.iter().flat_map(|line| line.to_le_bytes()));
    out
}

/// Whether a memory range may be cached.
#[derive(Clone, Copy)]
pub(super) enum Cacheability {
    NonCacheable = 0x01,
    Cacheable = 0x03,
}

const BUS_NUMBERS: u8 = 2;
const IO_PORTS: u8 = 1;
const MEMORY: u8 = 0;
/// Minimum and maximum are fixed.
const FIXED: u8 = 0x0c;

/// Bus numbers `first..=last` of a host bridge.
pub(super) fn bus_numbers(first: u8, last: u8) -> Vec<u8> {
    word(BUS_NUMBERS, 0, first.into(), last.into())
}

/// I/O ports `start..=end` forwarded by the host bridge.
pub(super) fn io_window(start: u16, end: u16) -> Vec<u8> {
    word(IO_PORTS, 3, start, end)
}

fn word(kind: u8, flags: u8, start: u16, end: u16) -> Vec<u8> {
    let len = u32::from(end) - u32::from(start) + 1;
    let mut out = vec![0x88, 13, 0, kind, FIXED, flags];
    [0, start, end, 0, len as u16].iter().for_each(|value| out.extend(value.to_le_bytes()));
    out
}

/// Memory `start..=end` below 4 GiB.
pub(super) fn memory_window(start: u32, end: u32, cache: Cacheability) -> Vec<u8> {
    let len = u64::from(end) - u64::from(start) + 1;
    let mut out = vec![0x87, 23, 0, MEMORY, FIXED, cache as u8];
    [0, start, end, 0, len as u32].iter().for_each(|value| out.extend(value.to_le_bytes()));
    out
}

/// Memory `start..=end` above 4 GiB.
pub(super) fn wide_memory_window(start: u64, end: u64) -> Vec<u8> {
    let mut out = vec![0x8a, 43, 0, MEMORY, FIXED, Cacheability::Cacheable as u8];
    [0, start, end, 0, end - start + 1].iter().for_each(|value| out.extend(value.to_le_bytes()));
    out
}
