//! The cache: one directory per image, named by its hash.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use dstack_manifest::OsImageHash;
use tokio::sync::Semaphore;

use super::{
    FetchError, FetchedImage, archive,
    download::{self, PLACEHOLDER},
};

/// How long a failure is told to others who ask for the same image, instead of another download.
const FAILURE_AGE: Duration = Duration::from_secs(30);
/// Images that are asked for at a time, or whose state is remembered.
const MAX_SLOTS: usize = 256;
const STAGING_PREFIX: &str = ".fetch-";
/// A staging directory this old was left by a crash.
const STAGING_AGE: Duration = Duration::from_secs(6 * 3600);

/// Bounds of a download and of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchLimits {
    /// Of an archive.
    pub compressed_bytes: u64,
    /// Of its files.
    pub unpacked_bytes: u64,
    /// For a download.
    pub timeout: Duration,
    /// Downloads at a time.
    pub downloads: usize,
    /// Images kept; the oldest goes first.
    pub images: usize,
}

impl Default for FetchLimits {
    /// 1 GiB packed, 4 GiB unpacked, 5 minutes, 2 at a time, 16 images.
    fn default() -> Self {
        Self { compressed_bytes: 1 << 30, unpacked_bytes: 4 << 30, timeout: Duration::from_secs(300), downloads: 2, images: 16 }
    }
}

type Slot = Arc<tokio::sync::Mutex<State>>;

#[derive(Default)]
struct State {
    image: Option<Arc<FetchedImage>>,
    failure: Option<(Instant, FetchError)>,
}

/// Gives images by hash, from the cache or from a server.
pub struct ImageFetcher {
    template: String,
    tls: Arc<rustls::ClientConfig>,
    dir: PathBuf,
    limits: FetchLimits,
    slots: Mutex<HashMap<OsImageHash, Slot>>,
    downloads: Semaphore,
    started: AtomicU64,
}

impl std::fmt::Debug for ImageFetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageFetcher").field("template", &self.template).field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl ImageFetcher {
    /// Images at `template`, an address with `{OS_IMAGE_HASH}` in it, kept in `dir`, which is made if need be.
    ///
    /// `tls`: whom to trust on `https`; images are held to their hash, so this protects only against being kept from them.
    /// Errors: the template is no address, or `dir` cannot be written.
    pub fn open(template: &str, tls: Arc<rustls::ClientConfig>, dir: impl Into<PathBuf>, limits: FetchLimits) -> Result<Self, FetchError> {
        check_template(template)?;
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(FetchError::disk(&dir))?;
        remove_leftovers(&dir);
        let downloads = Semaphore::new(limits.downloads.max(1));
        Ok(Self { template: template.to_owned(), tls, dir, limits, slots: Mutex::default(), downloads, started: AtomicU64::new(0) })
    }

    /// Downloads started so far.
    #[must_use]
    pub fn downloads(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// The image named `hash`. A cached one whose files were touched is checked again, and fetched again if it is not what it was.
    ///
    /// Errors: see [`FetchError`]; a failure is told to everybody who asks within half a minute.
    pub async fn image(&self, hash: &OsImageHash) -> Result<Arc<FetchedImage>, FetchError> {
        let slot = self.slot(hash)?;
        let mut state = slot.lock().await;
        if let Some(image) = state.image.as_ref().filter(|image| image.is_untouched()) {
            return Ok(Arc::clone(image));
        }
        state.image = None;
        if let Some((_, error)) = state.failure.as_ref().filter(|(at, _)| at.elapsed() < FAILURE_AGE) {
            return Err(error.clone());
        }
        let found = match self.cached(hash).await? {
            Some(image) => Ok(image),
            None => self.fetch(hash).await,
        };
        match found {
            Ok(image) => {
                let image = Arc::new(image);
                (state.image, state.failure) = (Some(Arc::clone(&image)), None);
                Ok(image)
            }
            Err(error) => {
                state.failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// The image named `hash` if it is in use already: nothing is fetched and nobody is waited for.
    pub fn cached_image(&self, hash: &OsImageHash) -> Option<Arc<FetchedImage>> {
        let slot = self.slots.lock().unwrap_or_else(PoisonError::into_inner).get(hash).map(Arc::clone)?;
        let state = slot.try_lock().ok()?;
        state.image.as_ref().filter(|image| image.is_untouched()).map(Arc::clone)
    }

    fn slot(&self, hash: &OsImageHash) -> Result<Slot, FetchError> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MAX_SLOTS && !slots.contains_key(hash) {
            // What nobody waits for is forgotten: the cache on disk remains.
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
            if slots.len() >= MAX_SLOTS {
                return Err(FetchError::Busy);
            }
        }
        Ok(Arc::clone(slots.entry(*hash).or_default()))
    }

    async fn cached(&self, hash: &OsImageHash) -> Result<Option<FetchedImage>, FetchError> {
        let (dir, hash) = (self.dir.join(hash.to_string()), *hash);
        blocking(move || {
            if !dir.exists() {
                return Ok(None);
            }
            match FetchedImage::open(&dir, &hash) {
                Ok(image) => Ok(Some(image)),
                Err(error) => {
                    tracing::warn!(os_image_hash = %hash, %error, "cached image is not what it was, it is removed");
                    fs::remove_dir_all(&dir).map_err(FetchError::disk(&dir))?;
                    Ok(None)
                }
            }
        })
        .await
    }

    async fn fetch(&self, hash: &OsImageHash) -> Result<FetchedImage, FetchError> {
        let _permit = self.downloads.acquire().await.map_err(|_| FetchError::BrokeOff)?;
        self.started.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        let archive = download::download(&self.template, &self.tls, hash, &self.dir, &self.limits).await?;
        let (dir, hash, limits) = (self.dir.clone(), *hash, self.limits);
        let image = blocking(move || place(archive, &dir, &hash, &limits)).await?;
        tracing::info!(os_image_hash = %hash, elapsed_ms = began.elapsed().as_millis(), "image fetched");
        Ok(image)
    }
}

/// Unpacks beside the cache's entries and renames into place.
fn place(archive: fs::File, dir: &Path, hash: &OsImageHash, limits: &FetchLimits) -> Result<FetchedImage, FetchError> {
    let staging = tempfile::Builder::new().prefix(STAGING_PREFIX).tempdir_in(dir).map_err(FetchError::disk(dir))?;
    archive::unpack(std::io::BufReader::new(archive), staging.path(), hash, limits)?;
    // An image that cannot be measured must not take a place.
    FetchedImage::open(staging.path(), hash)?;
    make_room(dir, limits.images.max(1) - 1);
    let target = dir.join(hash.to_string());
    match fs::rename(staging.path(), &target) {
        Ok(()) => drop(staging.keep()),
        // Another process was faster; what it put there is checked like anything else.
        Err(_) if target.exists() => {}
        Err(error) => return Err(FetchError::disk(&target)(error)),
    }
    FetchedImage::open(&target, hash)
}

/// Removes the oldest images until at most `keep` are left.
fn make_room(dir: &Path, keep: usize) {
    let mut images = entries(dir, |name| name.parse::<OsImageHash>().is_ok());
    images.sort();
    for (_, path) in images.iter().take(images.len().saturating_sub(keep)) {
        tracing::info!(path = %path.display(), "image removed from the cache");
        let _gone_already = fs::remove_dir_all(path);
    }
}

fn remove_leftovers(dir: &Path) {
    for (changed, path) in entries(dir, |name| name.starts_with(STAGING_PREFIX)) {
        if changed.elapsed().is_ok_and(|age| age > STAGING_AGE) {
            let _gone_already = fs::remove_dir_all(path);
        }
    }
}

/// Directories in `dir` with the time of their last change.
fn entries(dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<(SystemTime, PathBuf)> {
    let Ok(listing) = fs::read_dir(dir) else { return Vec::new() };
    let named = listing.flatten().filter(|entry| entry.file_name().to_str().is_some_and(&wanted));
    named.filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()))).collect()
}

fn check_template(template: &str) -> Result<(), FetchError> {
    let bad = |reason: &str| FetchError::Address { template: template.to_owned(), reason: reason.to_owned() };
    if !template.contains(PLACEHOLDER) {
        return Err(bad("it does not contain {OS_IMAGE_HASH}"));
    }
    if !template.starts_with("http://") && !template.starts_with("https://") {
        return Err(bad("it is neither http nor https"));
    }
    let sample = template.replace(PLACEHOLDER, &"00".repeat(32));
    dstack_rpc::Endpoint::parse(&sample).map(|_| ()).map_err(|error| bad(&error.to_string()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, FetchError> + Send + 'static) -> Result<T, FetchError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| FetchError::BrokeOff)?
}
