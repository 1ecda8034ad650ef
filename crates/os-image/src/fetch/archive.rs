//! Unpacking an untrusted archive into a directory that holds exactly what its checksum file lists.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write as _},
    path::{Component, Path},
};

use dstack_manifest::OsImageHash;
use dstack_measurement::checksum::{ChecksumError, ChecksumFile, MAX_CHECKSUM_FILE_LEN};
use flate2::read::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::{ArchiveFault, FetchError, FetchLimits};
use crate::image::CHECKSUM_NAME;

/// Headers and padding beside the files' own bytes.
const OVERHEAD: u64 = 4 << 20;
const MAX_ENTRIES: usize = 1024;

/// Unpacks `archive` (tar.gz, untrusted) into `dir`, which exists and is empty.
///
/// Afterwards it holds `sha256sum.txt`, whose hash is `expected`, and the files it lists, each with its digest. On error its content is
/// worthless.
pub(super) fn unpack(archive: impl Read, dir: &Path, expected: &OsImageHash, limits: &FetchLimits) -> Result<(), FetchError> {
    let fault = |fault| FetchError::Archive { os_image_hash: *expected, fault };
    let limit = limits.unpacked_bytes;
    let unpacked = Bounded { inner: MultiGzDecoder::new(archive), left: limit.saturating_add(OVERHEAD), limit };
    let mut unpacking = Unpacking { dir, left: limit, limit, checksums: None, digests: BTreeMap::new() };
    let mut tar = tar::Archive::new(unpacked);
    // Raw: nothing inside the archive names or sizes another entry, so no long name is read into memory.
    let entries = tar.entries().map_err(|error| fault(malformed(&error)))?.raw(true);
    for (index, entry) in entries.enumerate() {
        if index >= MAX_ENTRIES {
            return Err(fault(ArchiveFault::TooManyEntries { limit: MAX_ENTRIES }));
        }
        let mut entry = entry.map_err(|error| fault(malformed(&error)))?;
        let name = entry.path_bytes().into_owned();
        match entry.header().entry_type() {
            EntryType::Regular => unpacking.file(&name, &mut entry).map_err(|error| error.into_fetch(expected))?,
            EntryType::Directory => drop(file_name(&name).map_err(fault)?),
            // Times and owners of the file that follows; what it says about names is not believed.
            EntryType::XHeader | EntryType::XGlobalHeader => {}
            _ => return Err(fault(ArchiveFault::Kind { name: printable(&name) })),
        }
    }
    unpacking.finish(expected).map_err(|error| error.into_fetch(expected))
}

/// Checks that `dir` holds exactly what its `sha256sum.txt` lists, and that this file has the hash `expected`.
pub(super) fn check(dir: &Path, expected: &OsImageHash) -> Result<ChecksumFile, FetchError> {
    let fault = |fault| FetchError::Archive { os_image_hash: *expected, fault };
    let path = dir.join(CHECKSUM_NAME);
    let mut bytes = Vec::new();
    let file = File::open(&path).map_err(FetchError::disk(&path))?;
    file.take(MAX_CHECKSUM_FILE_LEN as u64 + 1).read_to_end(&mut bytes).map_err(FetchError::disk(&path))?;
    let checksums = parse_checksums(&bytes, expected).map_err(fault)?;
    for (name, listed) in checksums.entries() {
        let path = dir.join(name);
        let metadata = fs::symlink_metadata(&path).map_err(FetchError::disk(&path))?;
        if !metadata.is_file() {
            return Err(fault(ArchiveFault::Kind { name: name.to_owned() }));
        }
        let actual = digest_of(&path).map_err(FetchError::disk(&path))?;
        compare(name, &actual, listed).map_err(fault)?;
    }
    Ok(checksums)
}

struct Unpacking<'a> {
    dir: &'a Path,
    left: u64,
    limit: u64,
    checksums: Option<Vec<u8>>,
    digests: BTreeMap<String, [u8; 32]>,
}

impl Unpacking<'_> {
    fn file(&mut self, name: &[u8], content: &mut impl Read) -> Result<(), Problem> {
        let Some(name) = file_name(name)? else { return Ok(()) };
        if name == CHECKSUM_NAME {
            let mut bytes = Vec::new();
            content.take(MAX_CHECKSUM_FILE_LEN as u64 + 1).read_to_end(&mut bytes).map_err(|error| malformed(&error))?;
            return match self.checksums.replace(bytes) {
                None => Ok(()),
                Some(_) => Err(ArchiveFault::Duplicate { name }.into()),
            };
        }
        if self.digests.contains_key(&name) {
            return Err(ArchiveFault::Duplicate { name }.into());
        }
        let digest = self.copy(&name, content)?;
        self.digests.insert(name, digest);
        Ok(())
    }

    fn copy(&mut self, name: &str, content: &mut impl Read) -> Result<[u8; 32], Problem> {
        let path = self.dir.join(name);
        let mut file = File::create_new(&path).map_err(FetchError::disk(&path))?;
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 64 << 10]);
        loop {
            let length = content.read(&mut buffer).map_err(|error| malformed(&error))?;
            let Some(chunk) = buffer.get(..length).filter(|chunk| !chunk.is_empty()) else { break };
            self.left = self.left.checked_sub(length as u64).ok_or(ArchiveFault::TooLarge { limit: self.limit })?;
            hash.update(chunk);
            file.write_all(chunk).map_err(FetchError::disk(&path))?;
        }
        Ok(hash.finalize().into())
    }

    fn finish(self, expected: &OsImageHash) -> Result<(), Problem> {
        let bytes = self.checksums.ok_or(ArchiveFault::NoChecksums)?;
        let checksums = parse_checksums(&bytes, expected)?;
        for (name, listed) in checksums.entries() {
            let actual =
                self.digests.get(name).ok_or_else(|| ChecksumError::Missing { name: name.to_owned() }).map_err(ArchiveFault::from)?;
            compare(name, actual, listed)?;
        }
        let unlisted = self.digests.keys().filter(|name| !checksums.entries().any(|(listed, _)| listed == name.as_str()));
        for name in unlisted {
            let path = self.dir.join(name);
            fs::remove_file(&path).map_err(FetchError::disk(&path))?;
        }
        let path = self.dir.join(CHECKSUM_NAME);
        fs::write(&path, &bytes).map_err(FetchError::disk(&path))?;
        Ok(())
    }
}

/// An archive's fault, or our disk's.
enum Problem {
    Archive(ArchiveFault),
    Own(FetchError),
}

impl Problem {
    fn into_fetch(self, os_image_hash: &OsImageHash) -> FetchError {
        match self {
            Self::Archive(fault) => FetchError::Archive { os_image_hash: *os_image_hash, fault },
            Self::Own(error) => error,
        }
    }
}

impl From<ArchiveFault> for Problem {
    fn from(fault: ArchiveFault) -> Self {
        Self::Archive(fault)
    }
}

impl From<FetchError> for Problem {
    fn from(error: FetchError) -> Self {
        Self::Own(error)
    }
}

/// The plain name of a file at the top; `None` for one in a subdirectory, which no checksum file can list.
fn file_name(bytes: &[u8]) -> Result<Option<String>, ArchiveFault> {
    let traversal = || ArchiveFault::Traversal { name: printable(bytes) };
    let text = std::str::from_utf8(bytes).map_err(|_| traversal())?;
    let mut parts = Vec::new();
    for component in Path::new(text).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => parts.push(part.to_str().ok_or_else(traversal)?),
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(traversal()),
        }
    }
    if text.contains(['\0', '\\']) {
        return Err(traversal());
    }
    Ok(match parts.as_slice() {
        [name] => Some((*name).to_owned()),
        _ => None,
    })
}

fn parse_checksums(bytes: &[u8], expected: &OsImageHash) -> Result<ChecksumFile, ArchiveFault> {
    let checksums = ChecksumFile::parse(bytes)?;
    let actual = dstack_measurement::checksum::os_image_hash(bytes);
    if actual != *expected {
        return Err(ChecksumError::OtherImage { actual: actual.to_string(), expected: expected.to_string() }.into());
    }
    Ok(checksums)
}

fn compare(name: &str, actual: &[u8; 32], listed: &[u8; 32]) -> Result<(), ArchiveFault> {
    if actual == listed {
        return Ok(());
    }
    Err(ChecksumError::Mismatch { name: name.to_owned(), actual: hex::encode(actual), listed: hex::encode(listed) }.into())
}

fn digest_of(path: &Path) -> io::Result<[u8; 32]> {
    let (mut file, mut hash, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 64 << 10]);
    loop {
        let length = file.read(&mut buffer)?;
        match buffer.get(..length) {
            Some(chunk) if !chunk.is_empty() => hash.update(chunk),
            _ => return Ok(hash.finalize().into()),
        }
    }
}

fn malformed(error: &io::Error) -> ArchiveFault {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<ArchiveFault>()) {
        Some(fault) => fault.clone(),
        None => ArchiveFault::Malformed { reason: error.to_string().chars().take(200).collect() },
    }
}

fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(100).collect()
}

/// Ends with an error where the unpacked stream is longer than allowed, whatever is in it.
struct Bounded<R> {
    inner: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(length as u64).ok_or_else(|| io::Error::other(ArchiveFault::TooLarge { limit: self.limit }))?;
        Ok(length)
    }
}
