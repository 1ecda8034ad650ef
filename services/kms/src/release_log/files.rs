//! The log's directory, `<release_log.dir>/<first digits of the k256 root key>`.
//!
//! ```text
//! id          16 bytes hex: each log has its own key, so two replicas never sign two trees under one name
//! entries     the log: entry bundles without gaps (SPEC.md of dstack-release-log §3), synced before anybody hears of an entry; zeros
//!             behind the last one while the log is open
//! hashes      tlog-tiles' stored hashes, 32 bytes each; made again at each start
//! checkpoint  the last signed checkpoint that was written down: what the entries must agree with at the next start
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use dstack_release_log::{Appended, BUNDLE_ENTRIES, Checkpoint, Entry, Frontier, Hash, LogKey, encode_record, stored_hash_count};
use rand_core::{OsRng, RngCore as _};

use super::ReleaseLogError;

pub(super) const HASH_BYTES: u64 = 32;
/// Zeros are written ahead in such pieces: an entry then lands where the file has blocks, and syncing it writes no metadata.
const RESERVE_BYTES: u64 = 256 << 10;
const MAX_NOTE_BYTES: u64 = 1 << 16;
/// A process that is ending may hold the lock this long.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Name of one log, fixed when its directory is made.
pub(super) type LogId = [u8; 16];

/// The open files with the edge of the tree.
pub(super) struct Files {
    dir: PathBuf,
    _lock: File,
    pub(super) entries: Arc<File>,
    pub(super) hashes: Arc<File>,
    pub(super) entries_bytes: u64,
    /// Length of the file `entries`, zeros included.
    reserved_bytes: u64,
    pub(super) frontier: Frontier,
    /// Where each bundle begins in `entries`.
    pub(super) bundle_offsets: Vec<u64>,
    is_stopped: bool,
}

impl Files {
    /// Opens or makes the directory; gives the key of `key_of` for the log in it. Cuts off what was being written at a crash.
    ///
    /// Errors: not readable or writable, in use, or other entries than were signed.
    pub(super) fn open(
        dir: &Path,
        key_of: impl FnOnce(&LogId) -> Result<LogKey, ReleaseLogError>,
    ) -> Result<(Self, LogKey), ReleaseLogError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("making", dir))?;
        let lock = lock(dir)?;
        let key = key_of(&id(dir)?)?;
        let signed = read_checkpoint(dir, &key)?;
        let mut files = Self {
            dir: dir.to_owned(),
            _lock: lock,
            entries: Arc::new(open(dir, "entries")?),
            hashes: Arc::new(open(dir, "hashes")?),
            entries_bytes: 0,
            reserved_bytes: 0,
            frontier: Frontier::default(),
            bundle_offsets: Vec::new(),
            is_stopped: false,
        };
        files.replay(signed.as_ref())?;
        files.cut().map_err(io_error("cutting", &dir.join("entries")))?;
        Ok((files, key))
    }

    /// Builds the tree from the entries, up to the first that is torn.
    fn replay(&mut self, signed: Option<&Checkpoint>) -> Result<(), ReleaseLogError> {
        let path = self.dir.join("entries");
        let signed_size = signed.map_or(0, |checkpoint| checkpoint.head.size);
        let mut reader = BufReader::with_capacity(1 << 18, &*self.entries);
        let mut hashes = BufWriter::with_capacity(1 << 18, &*self.hashes);
        let mut batch: Vec<Vec<u8>> = Vec::new();
        loop {
            let size = self.frontier.size() + batch.len() as u64;
            let next = read_record(&mut reader).map_err(io_error("reading", &path))?;
            // What was signed is what it is; behind that, only a whole entry is one.
            let next = next.filter(|entry| size < signed_size || Entry::parse(entry).is_ok());
            if let Some(entry) = &next {
                if size.is_multiple_of(BUNDLE_ENTRIES) {
                    self.bundle_offsets.push(self.entries_bytes);
                }
                self.entries_bytes += 2 + entry.len() as u64;
            }
            let is_last = next.is_none();
            batch.extend(next);
            let size = self.frontier.size() + batch.len() as u64;
            if is_last || size == signed_size || batch.len() as u64 == BUNDLE_ENTRIES {
                let appended = self.frontier.append(batch.iter().map(Vec::as_slice));
                hashes.write_all(&bytes_of(&appended.hashes)).map_err(io_error("writing", &self.dir.join("hashes")))?;
                batch.clear();
                self.check_signed(signed)?;
            }
            if is_last {
                break;
            }
        }
        hashes.flush().map_err(io_error("writing", &self.dir.join("hashes")))?;
        if self.frontier.size() < signed_size {
            return Err(self.damaged(format!("{} entries, {signed_size} were signed", self.frontier.size())));
        }
        Ok(())
    }

    fn check_signed(&self, signed: Option<&Checkpoint>) -> Result<(), ReleaseLogError> {
        match signed {
            Some(signed) if signed.head.size == self.frontier.size() && signed.head.root != self.frontier.head().root => {
                Err(self.damaged(format!("the first {} entries are not those that were signed", signed.head.size)))
            }
            _ => Ok(()),
        }
    }

    fn damaged(&self, reason: String) -> ReleaseLogError {
        ReleaseLogError::Damaged { dir: self.dir.clone(), reason }
    }

    /// Appends entries and waits until they are on disk: all of them, or none.
    ///
    /// Errors: no space, or the disk fails. After a failure that leaves unknown what is on disk, every further call fails.
    pub(super) fn append(&mut self, entries: &[Vec<u8>]) -> Result<Appended, ReleaseLogError> {
        if self.is_stopped {
            return Err(ReleaseLogError::Stopped { dir: self.dir.clone() });
        }
        let records: Vec<Vec<u8>> = entries.iter().filter_map(|entry| encode_record(entry)).collect();
        let mut frontier = self.frontier.clone();
        let appended = frontier.append(entries.iter().map(Vec::as_slice));
        let records_bytes = records.concat();
        self.reserve(records_bytes.len() as u64);
        if let Err(error) = self.write(&records_bytes, &appended) {
            self.is_stopped |= self.cut().is_err();
            return Err(error);
        }
        self.reserved_bytes = self.reserved_bytes.max(self.entries_bytes + records_bytes.len() as u64);
        for (offset, record) in records.iter().enumerate() {
            if (self.frontier.size() + offset as u64).is_multiple_of(BUNDLE_ENTRIES) {
                self.bundle_offsets.push(self.entries_bytes);
            }
            self.entries_bytes += record.len() as u64;
        }
        self.frontier = frontier;
        Ok(appended)
    }

    /// Makes room for `bytes` and more. Where there is no room for more, the entry may still find its own.
    fn reserve(&mut self, bytes: u64) {
        let end = self.entries_bytes + bytes;
        if end <= self.reserved_bytes {
            return;
        }
        let zeros = vec![0; usize::try_from(RESERVE_BYTES.max(bytes)).unwrap_or(0)];
        let from = self.reserved_bytes;
        self.reserved_bytes = from + zeros.len() as u64;
        if self.entries.write_all_at(&zeros, from).is_err() {
            let _the_write_of_the_entry_says_why = self.cut();
        }
    }

    /// Takes away what is behind the last entry.
    pub(super) fn cut(&mut self) -> io::Result<()> {
        self.reserved_bytes = self.entries_bytes;
        self.entries.set_len(self.entries_bytes)
    }

    fn write(&mut self, records: &[u8], appended: &Appended) -> Result<(), ReleaseLogError> {
        let (entries, hashes) = (self.dir.join("entries"), self.dir.join("hashes"));
        let first = stored_hash_count(self.frontier.size()) * HASH_BYTES;
        self.hashes.write_all_at(&bytes_of(&appended.hashes), first).map_err(io_error("writing", &hashes))?;
        self.entries.write_all_at(records, self.entries_bytes).map_err(io_error("writing", &entries))?;
        self.entries.sync_data().map_err(|source| {
            // The kernel may have dropped what it could not write, and say so once only.
            self.is_stopped = true;
            io_error("syncing", &entries)(source)
        })
    }

    /// Writes down a signed checkpoint, for the next start to compare with. A lost one does no harm.
    pub(super) fn keep_checkpoint(&self, note: &str) {
        let (path, new) = (self.dir.join("checkpoint"), self.dir.join("checkpoint.new"));
        if let Err(error) = fs::write(&new, note).and_then(|()| fs::rename(&new, &path)) {
            tracing::warn!(path = %path.display(), %error, "the checkpoint cannot be written down");
        }
    }
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ReleaseLogError {
    let path = path.to_owned();
    move |source| ReleaseLogError::Io { action, path, source: Arc::new(source) }
}

fn bytes_of(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

fn open(dir: &Path, name: &str) -> Result<File, ReleaseLogError> {
    let path = dir.join(name);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    file.map_err(io_error("opening", &path))
}

fn lock(dir: &Path) -> Result<File, ReleaseLogError> {
    let file = open(dir, "lock")?;
    let started = Instant::now();
    while file.try_lock().is_err() {
        if started.elapsed() > LOCK_PATIENCE {
            return Err(ReleaseLogError::InUse { dir: dir.to_owned() });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(file)
}

fn id(dir: &Path) -> Result<LogId, ReleaseLogError> {
    let path = dir.join("id");
    let damaged = || ReleaseLogError::Damaged { dir: dir.to_owned(), reason: "id does not hold 16 bytes of hex".to_owned() };
    match fs::read_to_string(&path) {
        Ok(text) => hex::decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(damaged),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut id = LogId::default();
            OsRng.fill_bytes(&mut id);
            let text = format!("{}\n", hex::encode(id));
            dstack_service::fs::write_atomic(&path, text.as_bytes(), 0o600).map_err(io_error("writing", &path))?;
            Ok(id)
        }
        Err(error) => Err(io_error("reading", &path)(error)),
    }
}

fn read_checkpoint(dir: &Path, key: &LogKey) -> Result<Option<Checkpoint>, ReleaseLogError> {
    let path = dir.join("checkpoint");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("reading", &path)(error)),
    };
    let mut note = String::new();
    file.take(MAX_NOTE_BYTES).read_to_string(&mut note).map_err(io_error("reading", &path))?;
    if note.is_empty() {
        // Its content did not reach the disk before a power cut.
        return Ok(None);
    }
    let damaged = |reason: String| ReleaseLogError::Damaged { dir: dir.to_owned(), reason };
    key.verifier().open(&note).map(Some).map_err(|error| damaged(format!("checkpoint: {error}")))
}

/// The next entry; none at the end, or where it breaks off.
fn read_record(reader: &mut impl io::Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    let mut fill = |bytes: &mut [u8]| match reader.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    };
    if !fill(&mut length)? {
        return Ok(None);
    }
    let mut entry = vec![0; usize::from(u16::from_be_bytes(length))];
    Ok(if fill(&mut entry)? { Some(entry) } else { None })
}

#[cfg(test)]
mod tests;
