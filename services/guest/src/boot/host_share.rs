//! The host's share: a FAT32 disk that the host wrote and may write differently at any time.
//!
//! It is read once, by a parser in this process and not by the kernel, into memory; what is used later are those bytes.
//! FAT has no links; only regular files of the root directory with an expected name are looked at, each within its cap.

use std::{
    collections::BTreeMap,
    fs, io,
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use dstack_api::UserFacing;
use dstack_manifest::host_share::{FILES, SharedFile};

/// Entries of the root directory that are looked at; a directory with more is refused.
const MAX_ENTRIES: usize = 256;

/// Why the share is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostShareError {
    /// The disk cannot be read.
    #[error("read the host share {}", device.display())]
    Device {
        /// The device.
        device: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The disk is not a FAT file system that can be read.
    #[error("the host share is not a readable FAT file system: {reason}")]
    FileSystem {
        /// What the parser said.
        reason: String,
    },
    /// A file that must be there is not.
    #[error("the host share has no file {name}")]
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// A file is larger than allowed.
    #[error("{name} on the host share has {got} bytes, at most {limit} are allowed")]
    TooLarge {
        /// Its name.
        name: &'static str,
        /// Size in its directory entry, or what was read.
        got: u64,
        /// The cap.
        limit: u64,
    },
    /// Something else has the name of a file.
    #[error("{name} on the host share is not a regular file")]
    NotAFile {
        /// Its name.
        name: &'static str,
    },
    /// Two entries have the same name.
    #[error("{name} is on the host share twice")]
    Duplicate {
        /// The name.
        name: &'static str,
    },
    /// Copies cannot be stored.
    #[error("store {}", path.display())]
    Store {
        /// Where.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl UserFacing for HostShareError {
    fn code(&self) -> &'static str {
        match self {
            Self::Device { .. } | Self::FileSystem { .. } => "guest/host-share-unreadable",
            Self::Store { .. } => "guest/storage",
            _ => "guest/host-share-refused",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Store { .. } => "give the VM more memory".to_owned(),
            _ => "let the VMM write the share again: stop and start the VM".to_owned(),
        }
    }
}

/// The files as read, by name. Untrusted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct UnverifiedShare {
    files: BTreeMap<&'static str, Vec<u8>>,
}

impl UnverifiedShare {
    /// Reads the share from a block device or an image file.
    ///
    /// Errors: unreadable, a required file missing, a file too large, doubled or not a regular file.
    pub fn read(device: &Path) -> Result<Self, HostShareError> {
        let file = fs::File::open(device).map_err(|source| HostShareError::Device { device: device.to_owned(), source })?;
        // The parser is not ours: whatever it does on hostile bytes ends here.
        std::panic::catch_unwind(move || Self::parse(file))
            .unwrap_or_else(|_| Err(HostShareError::FileSystem { reason: "its structures contradict each other".to_owned() }))
    }

    fn parse(file: fs::File) -> Result<Self, HostShareError> {
        let broken = |error: io::Error| HostShareError::FileSystem { reason: error.to_string() };
        let volume = fatfs::FileSystem::new(file, fatfs::FsOptions::new()).map_err(broken)?;
        let mut files = BTreeMap::new();
        for (index, entry) in volume.root_dir().iter().enumerate() {
            if index >= MAX_ENTRIES {
                return Err(HostShareError::FileSystem { reason: format!("its root directory has more than {MAX_ENTRIES} entries") });
            }
            let entry = entry.map_err(broken)?;
            let name = entry.file_name();
            let Some(SharedFile { name, max_bytes, .. }) = FILES.into_iter().find(|file| file.name == name) else { continue };
            if !entry.is_file() {
                return Err(HostShareError::NotAFile { name });
            }
            if entry.len() > max_bytes {
                return Err(HostShareError::TooLarge { name, got: entry.len(), limit: max_bytes });
            }
            let mut bytes = Vec::new();
            entry.to_file().take(max_bytes + 1).read_to_end(&mut bytes).map_err(broken)?;
            let got = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            if got != entry.len() {
                return Err(HostShareError::FileSystem { reason: format!("{name} should have {} bytes and has {got}", entry.len()) });
            }
            if files.insert(name, bytes).is_some() {
                return Err(HostShareError::Duplicate { name });
            }
        }
        match FILES.iter().find(|file| file.required && !files.contains_key(file.name)) {
            Some(file) => Err(HostShareError::Missing { name: file.name }),
            None => Ok(Self { files }),
        }
    }

    /// Contents of a file, if it was there.
    #[must_use]
    pub fn get(&self, file: SharedFile) -> Option<&[u8]> {
        self.files.get(file.name).map(Vec::as_slice)
    }

    /// Writes copies into a new directory: 0700, files 0600.
    ///
    /// Errors: the directory exists already, or cannot be written.
    pub fn store(&self, directory: &Path) -> Result<(), HostShareError> {
        let store = |path: &Path| {
            let path = path.to_owned();
            move |source| HostShareError::Store { path, source }
        };
        fs::DirBuilder::new().mode(0o700).create(directory).map_err(store(directory))?;
        for (name, bytes) in &self.files {
            write_private(&directory.join(name), bytes).map_err(store(&directory.join(name)))?;
        }
        Ok(())
    }
}

/// Creates a file that only root may read. It must not exist yet; links are not followed.
///
/// Errors: as the kernel says.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_CLOEXEC;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(flags.bits()).open(path)?;
    file.write_all(bytes)
}
