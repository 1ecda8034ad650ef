//! The log of runtime events, in step with RTMR3 whatever happens.
//!
//! ```text
//! lock ─▶ journal {event, RTMR3 before} ─▶ extend ─▶ append line ─▶ remove journal ─▶ unlock
//! ```
//! A journal found later tells, together with the register, whether the extension happened: before it, the event is forgotten (it was
//! never measured); after it, its line is appended. Several processes may share the log.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use dstack_event_log::{Digest384, EventLog, RuntimeEvent, extend};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::{AttesterError, TeeDevice};

const MAX_LOG_BYTES: u64 = 8 << 20;

#[derive(Serialize, Deserialize)]
struct Journal {
    #[serde(with = "hex::serde")]
    before: Vec<u8>,
    event: RuntimeEvent,
}

/// The log's directory: `runtime_events.log` (JSON lines, 0600), a lock and a journal.
#[derive(Debug, Clone)]
pub struct RuntimeLog {
    directory: PathBuf,
}

impl RuntimeLog {
    /// Opens the log in `directory` (created 0700), and settles what a crash left behind.
    pub fn open(directory: impl Into<PathBuf>, device: &dyn TeeDevice) -> Result<Self, AttesterError> {
        let directory = directory.into();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed("creating", &directory))?;
        let log = Self { directory };
        let _lock = log.lock()?;
        log.settle(device)?;
        Ok(log)
    }

    /// Measures and logs `event`.
    pub fn measure(&self, device: &dyn TeeDevice, event: &RuntimeEvent) -> Result<(), AttesterError> {
        let _lock = self.lock()?;
        let before = self.settle(device)?;
        let journal = Journal { before: before.to_vec(), event: event.clone() };
        self.write_journal(&journal)?;
        if let Err(error) = device.extend_rtmr3(&event.digest()) {
            // Extended or not is unknown; the register tells now or at the next call.
            let _ = self.settle(device);
            return Err(error);
        }
        self.append(event)?;
        self.remove_journal()
    }

    /// The events so far; the log is checked against RTMR3.
    pub fn events(&self, device: &dyn TeeDevice) -> Result<Vec<RuntimeEvent>, AttesterError> {
        let _lock = self.lock()?;
        self.settle(device)?;
        self.read()
    }

    /// Brings log and register together; returns the register's value.
    fn settle(&self, device: &dyn TeeDevice) -> Result<Digest384, AttesterError> {
        let register = device.rtmr3()?;
        if let Some(journal) = self.read_journal()? {
            self.drop_torn_line()?;
            let logged = replay(&self.read()?);
            let before = Digest384::try_from(journal.before.as_slice()).unwrap_or([0; 48]);
            let after = extend(&before, &journal.event.digest());
            if register == after && logged == before {
                self.append(&journal.event)?;
                tracing::warn!(event = journal.event.event, "runtime event was measured but not logged before a crash; logged now");
            } else if register == before && logged == before {
                tracing::warn!(event = journal.event.event, "runtime event was not measured before a crash; forgotten");
            }
            self.remove_journal()?;
        }
        let logged = replay(&self.read()?);
        if logged != register {
            return Err(AttesterError::LogOutOfStep { replayed: hex::encode(logged), register: hex::encode(register) });
        }
        Ok(register)
    }

    fn lock(&self) -> Result<Flock<File>, AttesterError> {
        let path = self.directory.join("runtime_event.lock");
        let file = private(&path, |options| options.read(true).write(true).create(true))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| failed("locking", &path)(errno.into()))
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("runtime_events.log")
    }

    fn journal_path(&self) -> PathBuf {
        self.directory.join("runtime_event.journal")
    }

    fn read(&self) -> Result<Vec<RuntimeEvent>, AttesterError> {
        let path = self.log_path();
        let mut text = String::new();
        match File::open(&path) {
            Ok(file) => file.take(MAX_LOG_BYTES).read_to_string(&mut text).map_err(failed("reading", &path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(failed("opening", &path)(error)),
        };
        let lines = text.lines().enumerate();
        lines
            .map(|(index, line)| {
                serde_json::from_str(line).map_err(|_| AttesterError::LogMalformed { path: path.clone(), line: index + 1 })
            })
            .collect()
    }

    fn append(&self, event: &RuntimeEvent) -> Result<(), AttesterError> {
        let path = self.log_path();
        let mut line = serde_json::to_vec(event).map_err(|error| failed("encoding", &path)(error.into()))?;
        line.push(b'\n');
        let mut file = private(&path, |options| options.append(true).create(true))?;
        file.write_all(&line).and_then(|()| file.sync_data()).map_err(failed("appending to", &path))
    }

    /// Cuts a last line without its end: the append that a crash interrupted.
    fn drop_torn_line(&self) -> Result<(), AttesterError> {
        let path = self.log_path();
        if !path.exists() {
            return Ok(());
        }
        let mut file = private(&path, |options| options.read(true).write(true))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed("reading", &path))?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64).and_then(|()| file.seek(SeekFrom::End(0))).map_err(failed("truncating", &path))?;
        }
        Ok(())
    }

    fn write_journal(&self, journal: &Journal) -> Result<(), AttesterError> {
        let path = self.journal_path();
        let temporary = path.with_extension("new");
        let bytes = serde_json::to_vec(journal).map_err(|error| failed("encoding", &path)(error.into()))?;
        let mut file = private(&temporary, |options| options.write(true).create(true).truncate(true))?;
        file.write_all(&bytes).and_then(|()| file.sync_data()).map_err(failed("writing", &temporary))?;
        fs::rename(&temporary, &path).map_err(failed("renaming", &temporary))
    }

    fn read_journal(&self) -> Result<Option<Journal>, AttesterError> {
        let path = self.journal_path();
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|_| AttesterError::LogMalformed { path, line: 1 }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("reading", &path)(error)),
        }
    }

    fn remove_journal(&self) -> Result<(), AttesterError> {
        let path = self.journal_path();
        fs::remove_file(&path).map_err(failed("removing", &path))
    }
}

fn replay(events: &[RuntimeEvent]) -> Digest384 {
    let events = events.iter().map(RuntimeEvent::to_event).collect();
    // Entries made here have recomputed digests and register 3, so the log is consistent.
    EventLog::new(events).map_or([0; 48], |log| log.registers().get(3).copied().unwrap_or([0; 48]))
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AttesterError {
    move |source| AttesterError::Log { operation, path: path.to_owned(), source }
}

fn private(path: &Path, with: impl FnOnce(&mut OpenOptions) -> &mut OpenOptions) -> Result<File, AttesterError> {
    let mut options = OpenOptions::new();
    with(options.mode(0o600)).open(path).map_err(failed("opening", path))
}
