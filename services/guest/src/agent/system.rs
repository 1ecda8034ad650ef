//! State of the system from `/proc` and `/sys`. What cannot be read is empty or zero.

use std::{collections::BTreeSet, fs, io::Read as _, path::Path};

use dstack_api::guest_api::{DiskInfo, SystemInfo};
use nix::sys::{statvfs::statvfs, utsname::uname};

use crate::boot::requirements::os_release_field;

const MAX_FILE_BYTES: u64 = 1 << 20;
const MAX_DISKS: usize = 64;

/// At most 1 MiB of a file as text; empty if it cannot be read.
pub(super) fn text(path: impl AsRef<Path>) -> String {
    let mut bytes = Vec::new();
    let _ = fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads everything. Blocks shortly.
pub(super) fn read(os_release: &Path) -> SystemInfo {
    let cpus = text("/proc/cpuinfo");
    let memory = text("/proc/meminfo");
    let (total, available, free) = (kib(&memory, "MemTotal"), kib(&memory, "MemAvailable"), kib(&memory, "MemFree"));
    let (total_swap, free_swap) = (kib(&memory, "SwapTotal"), kib(&memory, "SwapFree"));
    let load = text("/proc/loadavg");
    let mut averages = load.split_whitespace().map(hundredths);
    SystemInfo {
        os_name: os_release_field(os_release, "NAME"),
        os_version: os_release_field(os_release, "VERSION_ID"),
        kernel_version: uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default(),
        cpu_model: field(&cpus, "model name").to_owned(),
        num_cpus: u32::try_from(cpus.lines().filter(|line| line.starts_with("processor")).count()).unwrap_or(u32::MAX),
        total_memory: total,
        available_memory: available,
        used_memory: total.saturating_sub(available),
        free_memory: free,
        total_swap,
        used_swap: total_swap.saturating_sub(free_swap),
        free_swap,
        uptime: text("/proc/uptime").split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0),
        loadavg_one: averages.next().unwrap_or(0),
        loadavg_five: averages.next().unwrap_or(0),
        loadavg_fifteen: averages.next().unwrap_or(0),
        disks: disks(&text("/proc/self/mounts")),
    }
}

fn field<'a>(table: &'a str, name: &str) -> &'a str {
    let line = table.lines().find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == name));
    line.map_or("", |(_, value)| value.trim())
}

fn kib(table: &str, name: &str) -> u64 {
    field(table, name).split(' ').next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0).saturating_mul(1024)
}

/// `0.25` is 25.
fn hundredths(number: &str) -> u32 {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u32 = whole.parse().unwrap_or(0);
    let fraction: u32 = fraction.get(..2).unwrap_or("0").parse().unwrap_or(0);
    whole.saturating_mul(100).saturating_add(fraction)
}

/// File systems on block devices, each once.
fn disks(mounts: &str) -> Vec<DiskInfo> {
    let mut seen = BTreeSet::new();
    let mut disks = Vec::new();
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (Some(device), Some(mount_point)) = (words.next(), words.next()) else { continue };
        if disks.len() >= MAX_DISKS || !device.starts_with("/dev/") || !seen.insert(device.to_owned()) {
            continue;
        }
        let Ok(usage) = statvfs(mount_point) else { continue };
        disks.push(DiskInfo {
            name: device.to_owned(),
            mount_point: mount_point.to_owned(),
            total_size: usage.blocks().saturating_mul(usage.fragment_size()),
            free_size: usage.blocks_available().saturating_mul(usage.fragment_size()),
        });
    }
    disks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_proc_are_read() {
        let table = "MemTotal:        2048 kB\nMemFree:  16 kB\n";

        assert_eq!(kib(table, "MemTotal"), 2048 * 1024);
        assert_eq!(kib(table, "Absent"), 0);
    }

    #[test]
    fn load_is_in_hundredths() {
        assert_eq!(hundredths("0.25"), 25);
        assert_eq!(hundredths("12.03"), 1203);
        assert_eq!(hundredths("x"), 0);
    }

    #[test]
    fn this_machine_has_memory_and_processors() {
        let info = read(Path::new("/etc/os-release"));

        assert!(info.total_memory > 0 && info.num_cpus > 0 && info.uptime > 0 && !info.kernel_version.is_empty());
        assert!(info.used_memory <= info.total_memory);
    }
}
