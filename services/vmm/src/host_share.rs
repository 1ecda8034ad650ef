//! The FAT32 disk that carries the host's files into the guest.

use std::{
    fs::File,
    io::{self, BufWriter, Seek as _, Write as _},
    path::Path,
};

use dstack_manifest::host_share::{APP_COMPOSE, ENCRYPTED_ENV, INSTANCE_INFO, SYS_CONFIG, SharedFile, USER_CONFIG, VOLUME_LABEL};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};

/// FAT32 needs 65,525 clusters; with 512-byte clusters and two tables this is the smallest round size.
const BASE_BYTES: u64 = 40 << 20;
const SECTOR: u64 = 512;

/// The files, as bytes; empty optional ones are left out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Files<'a> {
    pub(crate) app_compose: &'a [u8],
    pub(crate) sys_config: &'a [u8],
    pub(crate) instance_info: &'a [u8],
    pub(crate) encrypted_env: &'a [u8],
    pub(crate) user_config: &'a [u8],
}

impl<'a> Files<'a> {
    fn list(&self) -> [(SharedFile, &'a [u8]); 5] {
        [
            (APP_COMPOSE, self.app_compose),
            (SYS_CONFIG, self.sys_config),
            (INSTANCE_INFO, self.instance_info),
            (ENCRYPTED_ENV, self.encrypted_env),
            (USER_CONFIG, self.user_config),
        ]
    }

    /// The first file that a guest would refuse for its size.
    pub(crate) fn too_large(&self) -> Option<(&'static str, u64)> {
        let too_large = |(file, bytes): &(SharedFile, &[u8])| bytes.len() as u64 > file.max_bytes;
        self.list().into_iter().find(too_large).map(|(file, _)| (file.name, file.max_bytes))
    }
}

/// Writes the disk image, the same bytes for the same files, and replaces `path` with it.
///
/// Errors: the disk is full or the directory is gone.
pub(crate) fn write(path: &Path, files: &Files<'_>) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let image = tempfile::Builder::new().prefix(".share-").tempfile_in(directory)?;
    let content: usize = files.list().iter().map(|(_, bytes)| bytes.len()).sum();
    let size = BASE_BYTES + (content as u64).next_multiple_of(1 << 20);
    image.as_file().set_len(size)?;
    fill(image.as_file(), size, files)?;
    image.as_file().sync_all()?;
    image.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

fn fill(file: &File, size: u64, files: &Files<'_>) -> io::Result<()> {
    let sectors = u32::try_from(size / SECTOR).map_err(io::Error::other)?;
    let mut label = [b' '; 11];
    for (to, from) in label.iter_mut().zip(VOLUME_LABEL.bytes()) {
        *to = from;
    }
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(512)
        .total_sectors(sectors)
        .volume_id(0x6473_7461)
        .volume_label(label);
    let mut disk = file.try_clone()?;
    format_volume(&mut disk, options)?;
    disk.rewind()?;
    let volume = FileSystem::new(disk, FsOptions::new().update_accessed_date(false))?;
    for (file, bytes) in files.list() {
        if bytes.is_empty() && !file.required {
            continue;
        }
        let mut writer = BufWriter::with_capacity(64 << 10, volume.root_dir().create_file(file.name)?);
        writer.write_all(bytes)?;
        writer.flush()?;
    }
    volume.unmount()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::{io::Read as _, process::Command};

    use super::*;

    const FILES: Files<'static> =
        Files { app_compose: b"{\"a\":1}", sys_config: b"{}", instance_info: b"", encrypted_env: &[7; 3000], user_config: b"" };

    #[test]
    fn the_same_files_give_the_same_bytes_and_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (directory.path().join("1"), directory.path().join("2"));
        write(&one, &FILES).unwrap();
        write(&two, &FILES).unwrap();

        assert!(std::fs::read(&one).unwrap() == std::fs::read(&two).unwrap());
        let volume = FileSystem::new(File::open(&one).map(ReadOnly).unwrap(), FsOptions::new()).unwrap();
        assert_eq!((volume.fat_type(), volume.volume_label().as_str()), (FatType::Fat32, "DSTACKSHR"));
        let names: Vec<String> = volume.root_dir().iter().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["app-compose.json", ".sys-config.json", ".encrypted-env"]);
        let mut content = Vec::new();
        volume.root_dir().open_file(".encrypted-env").unwrap().read_to_end(&mut content).unwrap();
        assert_eq!(content, [7; 3000]);
    }

    /// Another implementation finds the volume consistent.
    #[test]
    fn mtools_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("share.img");
        write(&path, &FILES).unwrap();

        let output = Command::new("mcopy").arg("-i").arg(&path).args(["::app-compose.json", "-"]).output().unwrap();
        assert_eq!(output.stdout, FILES.app_compose, "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn a_file_beyond_the_guests_limit_is_named() {
        let large = vec![0; 256 * 1024 + 1];

        assert_eq!(FILES.too_large(), None);
        assert_eq!(Files { encrypted_env: &large, ..FILES }.too_large(), Some((".encrypted-env", 256 << 10)));
    }

    struct ReadOnly(File);

    impl io::Read for ReadOnly {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl io::Seek for ReadOnly {
        fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    impl io::Write for ReadOnly {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            Ok(buffer.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
