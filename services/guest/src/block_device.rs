//! Block devices by the serial that the VMM gave them. A serial only says where to look; what is found is checked by
//! dm-verity, LUKS or the parsers.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

pub use dstack_manifest::disk_serial::{
    DATA as DATA_SERIAL, ROOT as ROOT_SERIAL, SHARE as SHARE_SERIAL, VOLUME_PREFIX as VOLUME_SERIAL_PREFIX,
};

const PROBE_INTERVAL: Duration = Duration::from_millis(5);

/// No such device.
#[derive(Debug, thiserror::Error)]
#[error("no block device with serial {serial} appeared within {waited:?}")]
pub struct DeviceNotFound {
    /// The serial looked for.
    pub serial: String,
    /// How long it was waited for.
    pub waited: Duration,
}

/// Device node with `serial`, if it is there. `root`: where `sys` and `dev` are found, normally `/`.
#[must_use]
pub fn find_by_serial(root: &Path, serial: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(root.join("sys/block")).ok()?;
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    names.into_iter().find_map(|name| {
        let text = fs::read_to_string(root.join("sys/block").join(&name).join("serial")).ok()?;
        (text.trim_end_matches(['\n', '\0']) == serial).then(|| root.join("dev").join(&name))
    })
}

/// Waits until a device with `serial` is there.
///
/// Errors: none within `patience`.
pub fn wait_for_serial(root: &Path, serial: &str, patience: Duration) -> Result<PathBuf, DeviceNotFound> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(device) = find_by_serial(root, serial).filter(|node| node.exists()) {
            return Ok(device);
        }
        if Instant::now() >= deadline {
            return Err(DeviceNotFound { serial: serial.to_owned(), waited: patience });
        }
        thread::sleep(PROBE_INTERVAL);
    }
}

/// Size of the device or file in bytes.
///
/// Errors: it cannot be opened or sought.
pub fn size_bytes(device: &Path) -> io::Result<u64> {
    use std::io::Seek as _;
    fs::File::open(device)?.seek(io::SeekFrom::End(0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    #[test]
    fn finds_the_device_with_exactly_that_serial() {
        let root = tempfile::tempdir().unwrap();
        for (name, serial) in [("vda", "dstack-rootfs"), ("vdb", "dstack-data"), ("vdc", "dstack-data2")] {
            fs::create_dir_all(root.path().join("sys/block").join(name)).unwrap();
            fs::write(root.path().join("sys/block").join(name).join("serial"), format!("{serial}\n")).unwrap();
        }

        assert_eq!(find_by_serial(root.path(), DATA_SERIAL), Some(root.path().join("dev/vdb")));
        assert_eq!(find_by_serial(root.path(), "dstack"), None);
    }

    #[test]
    fn a_missing_device_is_an_error_that_names_it() {
        let root = tempfile::tempdir().unwrap();

        let error = wait_for_serial(root.path(), SHARE_SERIAL, Duration::ZERO).unwrap_err();

        assert!(error.to_string().contains("dstack-share"), "{error}");
    }
}
