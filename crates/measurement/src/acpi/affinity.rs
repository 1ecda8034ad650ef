//! SRAT: which CPUs and which memory belong to NUMA node 0, the only node there is.

use super::fixed::table;
use super::machine::Machine;

/// Start and end of the legacy window, which is no memory.
const LEGACY_HOLE: (u64, u64) = (0xa_0000, 0x10_0000);
const FOUR_GIB: u64 = 1 << 32;
/// QEMU writes at least this many memory entries: those of the node and two for the holes.
const MIN_MEMORY_ENTRIES: usize = 3;

/// SRAT revision 1.
pub(super) fn srat(machine: &Machine) -> Vec<u8> {
    let mut body = [1_u32.to_le_bytes().as_slice(), &[0; 8]].concat();
    body.extend((0..machine.cpu_count).flat_map(cpu));
    let low_end = u64::from(machine.low_memory_end);
    let ranges = [(0, LEGACY_HOLE.0), (LEGACY_HOLE.1, low_end - LEGACY_HOLE.1), (FOUR_GIB, machine.memory_size - low_end)];
    let used: Vec<(u64, u64)> = ranges.into_iter().filter(|(_, len)| *len > 0).collect();
    let unused = std::iter::repeat_n(memory(0, 0, false), MIN_MEMORY_ENTRIES - used.len());
    body.extend(used.iter().flat_map(|(start, len)| memory(*start, *len, true)));
    body.extend(unused.flatten());
    table(*b"SRAT", 1, &body)
}

fn cpu(apic_id: u8) -> [u8; 16] {
    let mut entry = [0; 16];
    let [kind, len, _, id, enabled, ..] = &mut entry;
    (*kind, *len, *id, *enabled) = (0, 16, apic_id, 1);
    entry
}

fn memory(start: u64, len: u64, is_enabled: bool) -> Vec<u8> {
    [&[1, 40, 0, 0, 0, 0, 0, 0], start.to_le_bytes().as_slice(), &len.to_le_bytes(), &[0; 4], &u32::from(is_enabled).to_le_bytes(), &[0; 8]]
        .concat()
}
