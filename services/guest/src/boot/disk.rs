//! The data disk: LUKS2 with a key that only this application instance gets, ext4 inside.
//!
//! A disk that still has the key of an earlier epoch gets the current one's. The new header is first written whole to a spare place and
//! then over the old one, so that a loss of power at any point leaves a header that opens.
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

use sha2::{Digest as _, Sha256};

use super::{
    host_share::write_private,
    luks_header::{self, DATA_OFFSET_BYTES, HEADER_BYTES, HeaderError},
};
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
/// Where a new header lies until it has replaced the old one: 4 KiB with [`REPLACEMENT_MARK`] and its SHA-256, then the header.
const REPLACEMENT_OFFSET_BYTES: u64 = 8 << 20;
const REPLACEMENT_MARK: &[u8; 32] = b"dstack data disk: new header v1\n";
const REPLACEMENT_PREFIX_BYTES: usize = 4096;
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
    /// It was opened with an older key and has the current one now.
    Rekeyed,
}

/// What a disk may be encrypted with.
#[derive(Debug, Clone, Copy)]
pub struct DiskKeys<'a> {
    /// What it is encrypted with from now on.
    pub current: &'a Secret<32>,
    /// What it may still have, the latest first.
    pub older: &'a [&'a Secret<32>],
}

impl<'a> DiskKeys<'a> {
    /// The only key there is.
    #[must_use]
    pub fn only(current: &'a Secret<32>) -> Self {
        Self { current, older: &[] }
    }
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

    /// Opens the disk with one of `keys` and mounts it on `target`; formats it first if it is blank or half formatted.
    ///
    /// Errors: foreign, tampered with, another key, or a program failed. A disk with data is never formatted.
    pub fn unlock(&self, state: DiskState, keys: DiskKeys<'_>, target: &Path) -> Result<DiskOutcome, DiskError> {
        let outcome = match state {
            DiskState::Foreign => return Err(DiskError::Foreign),
            DiskState::Ready => self.open_existing(keys)?,
            DiskState::Blank | DiskState::Formatting => {
                self.format(keys.current)?;
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

    fn open_existing(&self, keys: DiskKeys<'_>) -> Result<DiskOutcome, DiskError> {
        self.finish_replacement()?;
        self.copy_header()?;
        let mut outcome = DiskOutcome::Opened;
        if let Err(error) = self.open_with(keys.current) {
            if !matches!(error, DiskError::WrongKey(_)) {
                return Err(error);
            }
            let Some(older) = keys.older.iter().find(|key| self.accepts(key)) else { return Err(error) };
            self.change_key(older, keys.current)?;
            self.open_with(keys.current)?;
            outcome = DiskOutcome::Rekeyed;
        }
        self.check_file_system()?;
        Ok(outcome)
    }

    /// Takes the header to where the host cannot change it, and checks it there.
    fn copy_header(&self) -> Result<(), DiskError> {
        let read = |source| DiskError::Io { operation: "reading the header", source };
        let mut header = vec![0_u8; HEADER_BYTES];
        fs::File::open(&self.device).and_then(|mut file| file.read_exact(&mut header)).map_err(read)?;
        luks_header::check_and_pin(&mut header)?;
        header.resize(usize::try_from(DATA_OFFSET_BYTES).unwrap_or(HEADER_BYTES), 0);
        fs::write(self.header_copy(), &header).map_err(|source| DiskError::Io { operation: "copying the header", source })
    }

    fn open_with(&self, key: &Secret<32>) -> Result<(), DiskError> {
        self.open(key).map_err(|source| match source {
            // cryptsetup(8): 2 is no permission, that is, a bad passphrase.
            CommandError::Failed { code: Some(2), .. } => DiskError::WrongKey(source),
            source => DiskError::Program { operation: "opening", source },
        })
    }

    /// Whether the copied header has this key.
    fn accepts(&self, key: &Secret<32>) -> bool {
        let (header, device) = (self.header_copy().display().to_string(), self.device.display().to_string());
        let arguments = ["open", "--test-passphrase", "--type", "luks2", "--key-file", "-", "--header", &header, &device];
        self.runner.run(&self.cryptsetup(&arguments, key)).is_ok()
    }

    /// Gives the disk another key: in the copied header first, then on the disk.
    fn change_key(&self, old: &Secret<32>, new: &Secret<32>) -> Result<(), DiskError> {
        let new_key = self.scratch.join("luks-new-key");
        let write = |source| DiskError::Io { operation: "preparing the new key", source };
        write_private(&new_key, new.to_hex().as_bytes()).map_err(write)?;
        let (header, device, file) =
            (self.header_copy().display().to_string(), self.device.display().to_string(), new_key.display().to_string());
        let arguments = [
            "luksChangeKey",
            "--batch-mode",
            "--type",
            "luks2",
            "--hash",
            "sha256",
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            ITERATIONS,
            "--key-file",
            "-",
            "--header",
            &header,
            &device,
            &file,
        ];
        let changed = self.run("changing the key", self.cryptsetup(&arguments, old));
        // The directory is in memory only.
        fs::remove_file(&new_key).map_err(write)?;
        changed?;
        self.replace_header()?;
        self.copy_header()
    }

    /// Writes the copied header over the disk's. From the mark on, [`Self::finish_replacement`] completes what is interrupted.
    fn replace_header(&self) -> Result<(), DiskError> {
        let write = |source| DiskError::Io { operation: "replacing the header", source };
        let mut header = vec![0_u8; HEADER_BYTES];
        fs::File::open(self.header_copy()).and_then(|mut file| file.read_exact(&mut header)).map_err(write)?;
        luks_header::check_and_pin(&mut header.clone())?;
        let prefix = [REPLACEMENT_MARK.as_slice(), &Sha256::digest(&header)].concat();
        self.write_at(REPLACEMENT_OFFSET_BYTES + REPLACEMENT_PREFIX_BYTES as u64, &header).map_err(write)?;
        self.write_at(REPLACEMENT_OFFSET_BYTES, &prefix).map_err(write)?;
        self.finish_replacement()
    }

    /// Completes the replacement of a header, if one was begun. A header that the host put there is checked like any other.
    fn finish_replacement(&self) -> Result<(), DiskError> {
        let io = |source| DiskError::Io { operation: "replacing the header", source };
        let mut spare = vec![0_u8; REPLACEMENT_PREFIX_BYTES + HEADER_BYTES];
        let mut disk = fs::File::open(&self.device).map_err(io)?;
        disk.seek(SeekFrom::Start(REPLACEMENT_OFFSET_BYTES)).and_then(|_| disk.read_exact(&mut spare)).map_err(io)?;
        let (prefix, header) = spare.split_at(REPLACEMENT_PREFIX_BYTES);
        let prefix = prefix.strip_prefix(REPLACEMENT_MARK).filter(|rest| rest.starts_with(&Sha256::digest(header)));
        if prefix.is_none() {
            return Ok(());
        }
        self.write_at(0, header).map_err(io)?;
        self.write_at(REPLACEMENT_OFFSET_BYTES, &[0; REPLACEMENT_MARK.len()]).map_err(io)
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
        self.write_at(0, &bytes).map_err(write)
    }

    fn write_mark(&self, mark: &[u8]) -> Result<(), DiskError> {
        self.write_at(MARK_OFFSET_BYTES, mark).map_err(|source| DiskError::Io { operation: "marking", source })
    }

    /// Writes, and returns once it is on the disk.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = fs::OpenOptions::new().write(true).open(&self.device)?;
        disk.seek(SeekFrom::Start(offset))?;
        disk.write_all(bytes)?;
        disk.sync_all()
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
