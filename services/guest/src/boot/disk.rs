//! The data disk: LUKS2 with a key that only this application instance gets, ext4 inside.
//!
//! A disk is in one of four states. *Blank*: its beginning is zero; it is formatted. *Formatting*: it carries our mark
//! at the end of the header area; the formatting was interrupted and is done again, for nothing was stored yet.
//! *Ready*: a LUKS header without mark; it is opened. *Foreign*: anything else; it is refused and left alone.

use std::{
    fs,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use dstack_api::UserFacing;
use dstack_key_hierarchy::Secret;
use nix::mount::MsFlags;

use super::luks_header::{self, DATA_OFFSET_BYTES, HEADER_BYTES, HeaderError};
use crate::{
    block_device,
    command::{CommandError, Invocation, Runner},
    mounts::{self, MountError},
};

/// Name of the device mapping.
pub const MAPPING: &str = "dstack_data_disk";
/// What is written while a disk is being formatted.
const FORMATTING_MARK: &[u8; 32] = b"dstack data disk: formatting v1\n";
/// The mark's place: the last 4 KiB of the header area, which no key slot of ours reaches.
const MARK_OFFSET_BYTES: u64 = DATA_OFFSET_BYTES - 4096;
/// How much of the beginning must be zero for a disk to count as blank.
const BLANK_BYTES: usize = 1 << 20;
const MIN_DISK_BYTES: u64 = 64 << 20;
/// The passphrase is a 256-bit key: stretching it adds nothing. This is the least that cryptsetup accepts.
const ITERATIONS: &str = "1000";
/// A disk that is larger than its file system by less than this is not worth growing.
const GROWTH_BYTES: u64 = 16 << 20;
const FORMAT_PATIENCE: Duration = Duration::from_secs(300);

/// Why the data disk cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// It cannot be read or written.
    #[error("{operation} of the data disk")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// There is something on it that is not ours.
    #[error("the data disk is neither blank nor a dstack data disk; it was left as it is")]
    Foreign,
    /// Too small.
    #[error("the data disk has {got} bytes, at least {MIN_DISK_BYTES} are needed")]
    TooSmall {
        /// Its size.
        got: u64,
    },
    /// Its header was tampered with.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The key does not open it.
    #[error("the data disk cannot be opened with this instance's key")]
    WrongKey(#[source] CommandError),
    /// A program failed.
    #[error("{operation} of the data disk")]
    Program {
        /// What was tried.
        operation: &'static str,
        /// The cause.
        #[source]
        source: CommandError,
    },
    /// It cannot be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
}

impl UserFacing for DiskError {
    fn code(&self) -> &'static str {
        match self {
            Self::Foreign => "guest/disk-foreign",
            Self::TooSmall { .. } => "guest/disk-too-small",
            Self::Header(_) => "guest/disk-header-refused",
            Self::WrongKey(_) => "guest/disk-wrong-key",
            Self::Io { .. } | Self::Program { .. } | Self::Mount(_) => "guest/disk",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Foreign => "attach a blank disk, or the one this instance used before",
            Self::TooSmall { .. } => "give the VM a larger disk",
            Self::Header(_) => "restore the disk from a backup: somebody changed its header",
            Self::WrongKey(_) => "use the KMS, app id and instance the disk was made with",
            Self::Io { .. } | Self::Program { .. } | Self::Mount(_) => {
                "read the cause above and the host's log; the disk may be damaged or full"
            }
        }
        .to_owned()
    }
}

/// What is on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskState {
    /// Nothing.
    Blank,
    /// A formatting that did not finish.
    Formatting,
    /// A LUKS header.
    Ready,
    /// Something else.
    Foreign,
}

/// What was done to open the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskOutcome {
    /// It was empty and has a file system now.
    Formatted,
    /// It was opened as it was.
    Opened,
}

/// The data disk and the programs that work on it.
pub struct DataDisk<'a> {
    /// Runs cryptsetup and the ext4 tools.
    pub runner: &'a dyn Runner,
    /// Device or image file.
    pub device: PathBuf,
    /// Directory on tmpfs for the copy of the header.
    pub scratch: PathBuf,
    /// Where mapped devices appear: `/dev/mapper`.
    pub mapper: PathBuf,
}

impl DataDisk<'_> {
    /// Looks at the disk without changing it.
    ///
    /// Errors: unreadable, or too small.
    pub fn state(&self) -> Result<DiskState, DiskError> {
        let read = |source| DiskError::Io { operation: "reading", source };
        let size = block_device::size_bytes(&self.device).map_err(read)?;
        if size < MIN_DISK_BYTES {
            return Err(DiskError::TooSmall { got: size });
        }
        let mut file = fs::File::open(&self.device).map_err(read)?;
        let mut start = vec![0_u8; BLANK_BYTES];
        file.read_exact(&mut start).map_err(read)?;
        let mut mark = [0_u8; FORMATTING_MARK.len()];
        file.seek(SeekFrom::Start(MARK_OFFSET_BYTES)).and_then(|_| file.read_exact(&mut mark)).map_err(read)?;
        Ok(if &mark == FORMATTING_MARK {
            DiskState::Formatting
        } else if start.starts_with(&luks_header::MAGIC) {
            DiskState::Ready
        } else if start.iter().all(|&byte| byte == 0) && mark.iter().all(|&byte| byte == 0) {
            DiskState::Blank
        } else {
            DiskState::Foreign
        })
    }

    /// Opens the disk with `key` and mounts it on `target`; formats it first if it is blank or half formatted.
    ///
    /// Errors: foreign, tampered with, another key, or a program failed. A disk with data is never formatted.
    pub fn unlock(&self, state: DiskState, key: &Secret<32>, target: &Path) -> Result<DiskOutcome, DiskError> {
        let outcome = match state {
            DiskState::Foreign => return Err(DiskError::Foreign),
            DiskState::Ready => {
                self.open_existing(key)?;
                DiskOutcome::Opened
            }
            DiskState::Blank | DiskState::Formatting => {
                self.format(key)?;
                DiskOutcome::Formatted
            }
        };
        mounts::mount_fs(&self.mapped().display().to_string(), target, "ext4", MsFlags::MS_NOATIME, "")?;
        if outcome == DiskOutcome::Formatted {
            nix::unistd::sync();
            self.write_mark(&[0; FORMATTING_MARK.len()])?;
        }
        Ok(outcome)
    }

    fn mapped(&self) -> PathBuf {
        self.mapper.join(MAPPING)
    }

    fn header_copy(&self) -> PathBuf {
        self.scratch.join("luks-header")
    }

    /// The mark is on the disk before the first other byte is, and goes after the last.
    fn format(&self, key: &Secret<32>) -> Result<(), DiskError> {
        self.write_mark(FORMATTING_MARK)?;
        let header = self.header_copy();
        fs::File::create(&header)
            .and_then(|file| file.set_len(DATA_OFFSET_BYTES))
            .map_err(|source| DiskError::Io { operation: "preparing the header", source })?;
        let header_path = header.display().to_string();
        let arguments = [
            "luksFormat",
            "--batch-mode",
            "--type",
            "luks2",
            "--cipher",
            "aes-xts-plain64",
            "--key-size",
            "512",
            "--hash",
            "sha256",
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            ITERATIONS,
            "--sector-size",
            "512",
            "--offset",
            "32768",
            "--luks2-metadata-size",
            "16k",
            "--luks2-keyslots-size",
            "512k",
            "--key-file",
            "-",
            "--header",
            &header_path,
            &self.device.display().to_string(),
        ];
        self.run("formatting", self.cryptsetup(&arguments, key))?;
        self.write_header(&header)?;
        self.open(key).map_err(|source| DiskError::Program { operation: "opening", source })?;
        let mapped = self.mapped().display().to_string();
        let lazy = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
        let mkfs = Invocation::new("mkfs.ext4", &["-q", "-F", "-m", "0", "-L", "dstack-data", "-E", lazy, &mapped]);
        self.run("making the file system", mkfs.patience(FORMAT_PATIENCE))
    }

    fn open_existing(&self, key: &Secret<32>) -> Result<(), DiskError> {
        let read = |source| DiskError::Io { operation: "reading the header", source };
        let mut header = vec![0_u8; HEADER_BYTES];
        fs::File::open(&self.device).and_then(|mut file| file.read_exact(&mut header)).map_err(read)?;
        luks_header::check_and_pin(&mut header)?;
        header.resize(usize::try_from(DATA_OFFSET_BYTES).unwrap_or(HEADER_BYTES), 0);
        fs::write(self.header_copy(), &header).map_err(|source| DiskError::Io { operation: "copying the header", source })?;
        self.open(key).map_err(|source| match source {
            // cryptsetup(8): 2 is no permission, that is, a bad passphrase.
            CommandError::Failed { code: Some(2), .. } => DiskError::WrongKey(source),
            source => DiskError::Program { operation: "opening", source },
        })?;
        self.check_file_system()
    }

    /// Replays the journal and repairs what can be repaired; fills the disk if it was enlarged since.
    fn check_file_system(&self) -> Result<(), DiskError> {
        let read = |source| DiskError::Io { operation: "reading the file system", source };
        let mapped = self.mapped();
        let device_bytes = block_device::size_bytes(&mapped).map_err(read)?;
        let grows = device_bytes >= ext4_bytes(&mapped).map_err(read)?.saturating_add(GROWTH_BYTES);
        let mapped = mapped.display().to_string();
        let depth: &[&str] = if grows { &["-f", "-p", &mapped] } else { &["-p", &mapped] };
        match self.runner.run(&Invocation::new("e2fsck", depth).patience(FORMAT_PATIENCE)) {
            // e2fsck(8): 1 means errors were corrected.
            Ok(_) | Err(CommandError::Failed { code: Some(1), .. }) => {}
            Err(source) => return Err(DiskError::Program { operation: "checking the file system", source }),
        }
        if grows {
            self.run("growing the file system", Invocation::new("resize2fs", &[&mapped]).patience(FORMAT_PATIENCE))?;
        }
        Ok(())
    }

    fn open(&self, key: &Secret<32>) -> Result<(), CommandError> {
        let header = self.header_copy().display().to_string();
        let device = self.device.display().to_string();
        let arguments = [
            "open",
            "--type",
            "luks2",
            "--key-file",
            "-",
            "--disable-keyring",
            "--perf-no_read_workqueue",
            "--perf-no_write_workqueue",
            "--header",
            &header,
            &device,
            MAPPING,
        ];
        self.runner.run(&self.cryptsetup(&arguments, key)).map(drop)
    }

    /// cryptsetup with the passphrase, the key's lower-case hex, on standard input. There is no udev.
    fn cryptsetup(&self, arguments: &[&str], key: &Secret<32>) -> Invocation {
        Invocation::new("cryptsetup", arguments)
            .env("DM_DISABLE_UDEV", "1")
            .stdin(key.to_hex().as_bytes().to_vec())
            .patience(FORMAT_PATIENCE)
    }

    fn run(&self, operation: &'static str, invocation: Invocation) -> Result<(), DiskError> {
        self.runner.run(&invocation).map(drop).map_err(|source| DiskError::Program { operation, source })
    }

    fn write_header(&self, header: &Path) -> Result<(), DiskError> {
        let write = |source| DiskError::Io { operation: "writing the header", source };
        let mut bytes = vec![0_u8; HEADER_BYTES];
        fs::File::open(header).and_then(|mut file| file.read_exact(&mut bytes)).map_err(write)?;
        let mut disk = fs::OpenOptions::new().write(true).open(&self.device).map_err(write)?;
        disk.write_all(&bytes).and_then(|()| disk.sync_all()).map_err(write)
    }

    fn write_mark(&self, mark: &[u8]) -> Result<(), DiskError> {
        let write = |source| DiskError::Io { operation: "marking", source };
        let mut disk = fs::OpenOptions::new().write(true).open(&self.device).map_err(write)?;
        disk.seek(SeekFrom::Start(MARK_OFFSET_BYTES)).map_err(write)?;
        disk.write_all(mark).and_then(|()| disk.sync_all()).map_err(write)
    }
}

/// Size of the ext4 file system on `device` according to its superblock. The disk was opened with our key by now.
fn ext4_bytes(device: &Path) -> io::Result<u64> {
    let mut superblock = [0_u8; 1024];
    let mut file = fs::File::open(device)?;
    file.seek(SeekFrom::Start(1024))?;
    file.read_exact(&mut superblock)?;
    let field = |at: usize| superblock.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
    let blocks = u64::from(field(0x04)) | (u64::from(field(0x150)) << 32);
    Ok(blocks.saturating_mul(1024_u64.checked_shl(field(0x18)).unwrap_or(u64::MAX)))
}
