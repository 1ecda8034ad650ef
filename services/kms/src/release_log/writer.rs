//! The thread that appends, and its handle.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use dstack_key_hierarchy::RootKeys;
use dstack_release_log::{Entry, EventKind, LogKey, ReleaseProof};
use tokio::sync::{mpsc, oneshot};

use super::{
    ReleaseLogError,
    files::{Files, LogId},
    serve::LogKeyDocument,
};
use crate::domain::Domain;

/// Entries that may wait; a release waits for a place, a refusal does not.
const QUEUE: usize = 4096;
/// Most entries of one write.
const MAX_BATCH: usize = 512;
/// A checkpoint is written down at most this often; only the check at the next start reads it.
const CHECKPOINT_PERIOD: Duration = Duration::from_secs(1);

/// Digits of the root key that name its log's directory.
const ROOT_NAME_CHARS: usize = 16;
/// Space that must be there for the log to be ready.
const PROBE_BYTES: usize = 4096;

struct Append {
    entry: Vec<u8>,
    reply: Option<oneshot::Sender<Result<String, ReleaseLogError>>>,
}

/// What is served: always a state that was synced and signed.
pub(super) struct Published {
    pub(super) note: String,
    pub(super) size: u64,
    pub(super) entries_bytes: u64,
    pub(super) bundle_offsets: Vec<u64>,
    /// The newest checkpoint that witnesses signed, with their signatures.
    pub(super) witnessed: Option<String>,
}

/// What the thread and the readers share.
pub(super) struct Shared {
    dir: PathBuf,
    /// The last write succeeded.
    is_writable: AtomicBool,
    pub(super) entries: Arc<File>,
    pub(super) hashes: Arc<File>,
    pub(super) published: RwLock<Published>,
}

/// The log of this KMS. Dropping it ends the thread after what waits is written.
pub(crate) struct ReleaseLog {
    queue: Option<mpsc::Sender<Append>>,
    thread: Option<JoinHandle<()>>,
    pub(super) document: LogKeyDocument,
    pub(super) shared: Arc<Shared>,
}

impl ReleaseLog {
    /// Opens the log of the root `keys` below `dir`, signed in the name of `domain`, and notes the start in it. `now`: Unix seconds.
    ///
    /// A KMS that has taken over another root begins another log beside the one it had.
    pub(crate) fn open(dir: &Path, keys: &RootKeys, domain: &Domain, now: u64) -> Result<Self, ReleaseLogError> {
        let key_of = |id: &LogId| Ok(LogKey::new(&format!("{domain}/log/{}", hex::encode(id)), keys.release_log_seed(id).expose())?);
        let root: String = hex::encode(keys.k256.public_key()).chars().skip(2).take(ROOT_NAME_CHARS).collect();
        let dir = &dir.join(root);
        let (mut files, key) = Files::open(dir, key_of)?;
        let document = LogKeyDocument::new(&key.verifier(), keys)?;
        files.append(&[Entry::new(EventKind::Start, now).encode()?])?;
        let note = key.sign(files.frontier.head());
        files.keep_checkpoint(&note);
        let published = Published {
            note,
            size: files.frontier.size(),
            entries_bytes: files.entries_bytes,
            bundle_offsets: files.bundle_offsets.clone(),
            witnessed: None,
        };
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            is_writable: AtomicBool::new(true),
            entries: Arc::clone(&files.entries),
            hashes: Arc::clone(&files.hashes),
            published: RwLock::new(published),
        });
        let (queue, waiting) = mpsc::channel(QUEUE);
        let writer = Writer { files, key, shared: Arc::clone(&shared), kept_at: Instant::now() };
        let thread = std::thread::Builder::new().name("release-log".to_owned()).spawn(move || writer.run(waiting));
        let thread = thread.map_err(super::files::io_error("starting the writer of", dir))?;
        tracing::info!(dir = %dir.display(), verifier_key = document.verifier_key, "release log opened");
        Ok(Self { queue: Some(queue), thread: Some(thread), document, shared })
    }

    /// Appends and waits until the entry is on disk; gives the proof that it is in the log.
    pub(crate) async fn append(&self, entry: &Entry) -> Result<String, ReleaseLogError> {
        let (reply, answer) = oneshot::channel();
        let append = Append { entry: entry.encode()?, reply: Some(reply) };
        let queue = self.queue.as_ref().ok_or(ReleaseLogError::Overloaded)?;
        queue.send(append).await.map_err(|_| ReleaseLogError::Overloaded)?;
        answer.await.map_err(|_| ReleaseLogError::Overloaded)?
    }

    /// Appends without waiting; whether there was a place.
    pub(crate) fn note(&self, entry: &Entry) -> bool {
        let Ok(entry) = entry.encode() else { return false };
        self.queue.as_ref().is_some_and(|queue| queue.try_send(Append { entry, reply: None }).is_ok())
    }

    /// Whether entries can be written: for readiness. After a failed write the disk is tried, since nobody may call until it is ready.
    pub(crate) async fn is_ready(&self) -> bool {
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            return false;
        }
        if self.shared.is_writable.load(Ordering::Relaxed) {
            return true;
        }
        let probe = self.shared.dir.join("probe");
        let tried = tokio::task::spawn_blocking(move || fs::write(&probe, [0; PROBE_BYTES]).and_then(|()| fs::remove_file(&probe)));
        tried.await.is_ok_and(|written| written.is_ok())
    }

    /// Number of entries.
    pub(crate) fn size(&self) -> u64 {
        self.shared.published.read().unwrap_or_else(PoisonError::into_inner).size
    }
}

impl Drop for ReleaseLog {
    fn drop(&mut self) {
        drop(self.queue.take());
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

struct Writer {
    files: Files,
    key: LogKey,
    shared: Arc<Shared>,
    kept_at: Instant,
}

impl Writer {
    fn run(mut self, mut waiting: mpsc::Receiver<Append>) {
        while let Some(first) = waiting.blocking_recv() {
            let mut batch = vec![first];
            while let Some(next) = (batch.len() < MAX_BATCH).then(|| waiting.try_recv().ok()).flatten() {
                batch.push(next);
            }
            self.commit(batch);
        }
        let note = self.key.sign(self.files.frontier.head());
        self.files.keep_checkpoint(&note);
        let _zeros_stay_until_the_next_start = self.files.cut();
    }

    fn commit(&mut self, batch: Vec<Append>) {
        let first = self.files.frontier.size();
        let (entries, replies): (Vec<_>, Vec<_>) = batch.into_iter().map(|append| (append.entry, append.reply)).unzip();
        let appended = match self.files.append(&entries) {
            Ok(appended) => appended,
            Err(error) => {
                self.shared.is_writable.store(false, Ordering::Relaxed);
                tracing::error!(error = %dstack_service::report::Report::new(&error), lost = entries.len(), "nothing can be logged, so nothing is released");
                replies.into_iter().flatten().for_each(|reply| drop(reply.send(Err(error.clone()))));
                return;
            }
        };
        self.shared.is_writable.store(true, Ordering::Relaxed);
        let head = self.files.frontier.head();
        let note = self.key.sign(head);
        self.publish(&note);
        for (index, (entry, reply)) in (first..).zip(entries.into_iter().zip(replies)) {
            let Some(reply) = reply else { continue };
            let path = appended.prove(head.size, index).unwrap_or_default();
            let proof = ReleaseProof { entry, index, path, checkpoint: note.clone() };
            let _caller_left = reply.send(Ok(proof.encode()));
        }
        if self.kept_at.elapsed() >= CHECKPOINT_PERIOD {
            self.files.keep_checkpoint(&note);
            self.kept_at = Instant::now();
        }
    }

    fn publish(&self, note: &str) {
        let mut published = self.shared.published.write().unwrap_or_else(PoisonError::into_inner);
        published.note = note.to_owned();
        published.size = self.files.frontier.size();
        published.entries_bytes = self.files.entries_bytes;
        let known = published.bundle_offsets.len();
        published.bundle_offsets.extend(self.files.bundle_offsets.iter().skip(known));
    }
}

#[cfg(test)]
mod tests;
