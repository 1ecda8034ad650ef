//! Read-only volumes. The root hash comes from the measured app-compose; everything else about a volume is a hint.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

use dstack_api::UserFacing;
use dstack_manifest::{Digest32, VerityVolume};
use nix::mount::MsFlags;
use serde::Deserialize;

use crate::{
    block_device::{self, DeviceNotFound, VOLUME_SERIAL_PREFIX},
    command::{CommandError, Invocation, Runner},
    mounts::{self, MountError},
};

const TRAILER_BYTES: u64 = 4096;
const DEVICE_PATIENCE: Duration = Duration::from_secs(10);

/// Why a volume cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// Not attached.
    #[error("volume {source_name}")]
    Missing {
        /// Its file name on the host.
        source_name: String,
        /// The cause.
        #[source]
        source: DeviceNotFound,
    },
    /// The trailer does not say where the hash tree starts.
    #[error("volume {source_name} has no usable trailer")]
    Trailer {
        /// Its file name on the host.
        source_name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// dm-verity refuses it.
    #[error("volume {source_name} does not match its measured root hash")]
    Verity {
        /// Its file name on the host.
        source_name: String,
        /// The cause.
        #[source]
        source: CommandError,
    },
    /// It cannot be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
}

impl UserFacing for VolumeError {
    fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "guest/volume-missing",
            Self::Trailer { .. } | Self::Verity { .. } => "guest/volume-tampered",
            Self::Mount(_) => "guest/volume-mount",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Missing { .. } => "put the volume's file into the host's volume directory and start the VM again",
            Self::Trailer { .. } | Self::Verity { .. } => "pack the image archive again and deploy what that gives",
            Self::Mount(_) => "choose a target below /run/dstack/volumes",
        }
        .to_owned()
    }
}

#[derive(Deserialize)]
struct Trailer {
    data_size: u64,
}

/// Opens and mounts all volumes of the app. `root`: `/` outside tests.
///
/// Errors: the first volume that is missing or not the measured one.
pub fn mount_all(runner: &dyn Runner, root: &Path, volumes: &[VerityVolume]) -> Result<(), VolumeError> {
    let mut opened: BTreeMap<Digest32, PathBuf> = BTreeMap::new();
    for volume in volumes {
        let mapped = match opened.get(&volume.verity_root) {
            Some(mapped) => mapped.clone(),
            None => {
                let mapped = open(runner, root, volume, opened.len())?;
                opened.insert(volume.verity_root, mapped.clone());
                mapped
            }
        };
        let target = root.join(volume.target.trim_start_matches('/'));
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        mounts::mount_fs(&mapped.display().to_string(), &target, "erofs", flags, "")?;
    }
    Ok(())
}

fn open(runner: &dyn Runner, root: &Path, volume: &VerityVolume, index: usize) -> Result<PathBuf, VolumeError> {
    let source_name = || volume.source.clone();
    let serial = format!("{VOLUME_SERIAL_PREFIX}{index}");
    let device = block_device::wait_for_serial(root, &serial, DEVICE_PATIENCE)
        .map_err(|source| VolumeError::Missing { source_name: source_name(), source })?;
    let data_bytes = read_trailer(&device).map_err(|source| VolumeError::Trailer { source_name: source_name(), source })?;
    let device = device.display().to_string();
    let offset = format!("--hash-offset={data_bytes}");
    let mapping = format!("dstack-volume-{index}");
    let invocation = Invocation::new("veritysetup", &["open", &offset, &device, &mapping, &device, &volume.verity_root.to_string()])
        .env("DM_DISABLE_UDEV", "1");
    runner.run(&invocation).map_err(|source| VolumeError::Verity { source_name: source_name(), source })?;
    Ok(Path::new("/dev/mapper").join(mapping))
}

/// Where the hash tree starts: `{"data_size":N}` in the last block. A wrong value makes the root hash not match.
///
/// Errors: no such JSON, or a value outside the device.
pub fn read_trailer(device: &Path) -> io::Result<u64> {
    let wrong = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    let size = block_device::size_bytes(device)?;
    let start = size.checked_sub(TRAILER_BYTES).ok_or_else(|| wrong("the volume is too small"))?;
    let mut file = fs::File::open(device)?;
    file.seek(SeekFrom::Start(start))?;
    let mut block = Vec::new();
    file.take(TRAILER_BYTES).read_to_end(&mut block)?;
    let text = block.split(|&byte| byte == 0).next().unwrap_or_default();
    let trailer: Trailer = serde_json::from_slice(text)?;
    if trailer.data_size == 0 || trailer.data_size >= start || !trailer.data_size.is_multiple_of(TRAILER_BYTES) {
        return Err(wrong("the data size does not fit the volume"));
    }
    Ok(trailer.data_size)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    fn trailer_of(text: &str, blocks: usize) -> io::Result<u64> {
        let directory = tempfile::tempdir().unwrap();
        let mut bytes = vec![1_u8; blocks * 4096];
        let mut last = text.as_bytes().to_vec();
        last.resize(4096, 0);
        bytes.extend(last);
        fs::write(directory.path().join("v"), bytes).unwrap();
        read_trailer(&directory.path().join("v"))
    }

    #[test]
    fn the_trailer_says_where_the_tree_starts() {
        assert_eq!(trailer_of(r#"{"data_size":8192}"#, 3).unwrap(), 8192);
    }

    #[test]
    fn a_trailer_that_cannot_be_true_is_refused() {
        for bad in ["", "{}", r#"{"data_size":0}"#, r#"{"data_size":12288}"#, r#"{"data_size":4097}"#, r#"{"data_size":-1}"#] {
            assert!(trailer_of(bad, 3).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_volume_that_is_not_attached_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = block_device::wait_for_serial(root.path(), "dstack-vol0", Duration::ZERO).unwrap_err();

        let error = VolumeError::Missing { source_name: "abc.img".to_owned(), source: error };

        assert_eq!(error.to_string(), "volume abc.img");
        assert_eq!(error.code(), "guest/volume-missing");
    }
}
