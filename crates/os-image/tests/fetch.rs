//! Images by hash from a server that may send anything.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::{
    io::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, http::StatusCode, response::IntoResponse as _};
use dstack_api::UserFacing as _;
use dstack_manifest::OsImageHash;
use dstack_measurement::checksum::{ChecksumError, binding_line, os_image_hash};
use dstack_os_image::fetch::{ArchiveFault, FetchError, FetchLimits, ImageFetcher};
use dstack_rpc::{Listener, system_tls};
use flate2::{Compression, write::GzEncoder};
use tar::{EntryType, Header};

const METADATA: &[u8] =
    br#"{"bios":"ovmf.fd","kernel":"kernel","initrd":"initrd","rootfs":"rootfs","cmdline":"quiet","version":"1.2.3","is_dev":true}"#;

/// An archive that is put together entry by entry, also in ways no tool would.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn entry(mut self, kind: EntryType, name: &[u8], content: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        if kind.is_symlink() || kind.is_hard_link() {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, name.as_bytes(), content)
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        gzip(&self.0)
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Name and content of the files of a small image, and its checksum file.
fn image() -> (Vec<(&'static str, Vec<u8>)>, String) {
    let files = vec![
        ("ovmf.fd", b"firmware".to_vec()),
        ("kernel", vec![7; 200_000]),
        ("initrd", b"initrd".to_vec()),
        ("metadata.json", METADATA.to_vec()),
    ];
    let checksums = files.iter().map(|(name, content)| binding_line(name, content)).collect();
    (files, checksums)
}

fn whole(change: impl FnOnce(Archive) -> Archive) -> (OsImageHash, Vec<u8>) {
    let (files, checksums) = image();
    let archive = files.iter().fold(Archive::default(), |archive, (name, content)| archive.file(name, content));
    (os_image_hash(checksums.as_bytes()), change(archive.file("sha256sum.txt", checksums.as_bytes())).finish())
}

/// Serves one archive, whatever hash is asked for, and counts.
struct Server {
    template: String,
    requests: Arc<AtomicUsize>,
    body: Arc<Mutex<Option<Vec<u8>>>>,
}

impl Server {
    async fn start(archive: impl Into<Option<Vec<u8>>>) -> Self {
        let (requests, body) = (Arc::<AtomicUsize>::default(), Arc::new(Mutex::new(archive.into())));
        let (counter, served) = (Arc::clone(&requests), Arc::clone(&body));
        let answer = move || {
            counter.fetch_add(1, Ordering::SeqCst);
            let body = served.lock().unwrap().clone();
            async move { body.map_or_else(|| StatusCode::NOT_FOUND.into_response(), |body| Body::from(body).into_response()) }
        };
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let template = format!("http://{}/mr_{{OS_IMAGE_HASH}}.tar.gz", listener.local_addr().unwrap());
        tokio::spawn(dstack_rpc::serve(listener, Router::new().fallback(answer), std::future::pending()));
        Self { template, requests, body }
    }

    fn fetcher(&self, dir: &std::path::Path, limits: FetchLimits) -> ImageFetcher {
        ImageFetcher::open(&self.template, system_tls(), dir, limits).unwrap()
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn fault_of(archive: Vec<u8>, hash: &OsImageHash, limits: FetchLimits) -> ArchiveFault {
    let (server, dir) = (Server::start(archive).await, tempfile::tempdir().unwrap());
    let error = server.fetcher(dir.path(), limits).image(hash).await.unwrap_err();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind by {error}");
    match error {
        FetchError::Archive { fault, .. } => fault,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn many_callers_share_one_download_and_the_next_process_needs_none() {
    let (hash, archive) =
        whole(|archive| archive.file("rootfs", b"not listed").entry(EntryType::Directory, b"sub/", b"").file("sub/x", b"x"));
    let (server, dir) = (Server::start(archive).await, tempfile::tempdir().unwrap());
    let fetcher = Arc::new(server.fetcher(dir.path(), FetchLimits::default()));

    let callers = (0..8).map(|_| {
        let fetcher = Arc::clone(&fetcher);
        tokio::spawn(async move { fetcher.image(&hash).await.unwrap() })
    });
    for caller in callers.collect::<Vec<_>>() {
        assert_eq!(caller.await.unwrap().os_image_hash(), hash);
    }
    let image = server.fetcher(dir.path(), FetchLimits::default()).image(&hash).await.unwrap();

    assert_eq!((server.requests(), fetcher.downloads()), (1, 1));
    assert_eq!((image.metadata().version.as_str(), image.metadata().is_dev), ("1.2.3", true));
    assert_eq!(image.read_measured().unwrap().kernel, vec![7; 200_000]);
    assert_eq!(image.tdx_document().unwrap(), None);
    let mut names: Vec<_> =
        std::fs::read_dir(image.dir()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["initrd", "kernel", "metadata.json", "ovmf.fd", "sha256sum.txt"]);
}

#[tokio::test]
async fn a_cached_image_that_was_changed_is_fetched_again() {
    let (hash, archive) = whole(|archive| archive);
    let (server, dir) = (Server::start(archive).await, tempfile::tempdir().unwrap());
    let fetcher = server.fetcher(dir.path(), FetchLimits::default());
    let image = fetcher.image(&hash).await.unwrap();

    std::fs::write(image.dir().join("kernel"), vec![8; 200_000]).unwrap();
    assert!(matches!(
        image.read_measured(),
        Err(FetchError::Archive { fault: ArchiveFault::Checksum(ChecksumError::Mismatch { .. }), .. })
    ));
    let again = fetcher.image(&hash).await.unwrap();
    assert_eq!((server.requests(), again.read_measured().unwrap().kernel[0]), (2, 7));

    std::fs::remove_file(again.dir().join("initrd")).unwrap();
    server.fetcher(dir.path(), FetchLimits::default()).image(&hash).await.unwrap();
    assert_eq!(server.requests(), 3);
}

#[tokio::test]
async fn entries_that_could_write_elsewhere_are_refused() {
    let cases: [(&str, EntryType, &[u8]); 8] = [
        ("symbolic link", EntryType::Symlink, b"kernel2"),
        ("hard link", EntryType::Link, b"kernel2"),
        ("device", EntryType::Char, b"kernel2"),
        ("fifo", EntryType::Fifo, b"kernel2"),
        ("long name", EntryType::GNULongName, b"././@LongLink"),
        ("parent directory", EntryType::Regular, b"../kernel2"),
        ("absolute name", EntryType::Regular, b"/tmp/kernel2"),
        ("parent in the middle", EntryType::Directory, b"a/../../b"),
    ];
    for (name, kind, path) in cases {
        let (hash, archive) = whole(|archive| archive.entry(kind, path, b""));

        let fault = fault_of(archive, &hash, FetchLimits::default()).await;

        assert!(matches!(fault, ArchiveFault::Kind { .. } | ArchiveFault::Traversal { .. }), "{name}: {fault}");
    }
}

#[tokio::test]
async fn only_what_the_hash_names_is_an_image() {
    let (files, checksums) = image();
    let hash = os_image_hash(checksums.as_bytes());
    let without = |missing: &str| {
        let kept = files.iter().filter(|(name, _)| *name != missing);
        kept.fold(Archive::default(), |archive, (name, content)| archive.file(name, content))
    };
    let sums = |archive: Archive| archive.file("sha256sum.txt", checksums.as_bytes()).finish();
    let fault = async |archive: Vec<u8>| fault_of(archive, &hash, FetchLimits::default()).await;

    assert!(matches!(fault(sums(without("kernel"))).await, ArchiveFault::Checksum(ChecksumError::Missing { .. })));
    let changed = sums(without("kernel").file("kernel", b"other"));
    assert!(matches!(fault(changed).await, ArchiveFault::Checksum(ChecksumError::Mismatch { .. })));
    assert!(matches!(fault(sums(without("").file("kernel", b"twice"))).await, ArchiveFault::Duplicate { .. }));
    assert!(matches!(fault(without("").finish()).await, ArchiveFault::NoChecksums));
    let other = without("").file("sha256sum.txt", binding_line("kernel", b"").as_bytes()).finish();
    assert!(matches!(fault(other).await, ArchiveFault::Checksum(ChecksumError::OtherImage { .. })));
    assert!(matches!(fault(b"no gzip".to_vec()).await, ArchiveFault::Malformed { .. }));
    assert!(matches!(fault(gzip(&[1; 4096])).await, ArchiveFault::Malformed { .. }));
    let mut cut = sums(without(""));
    cut.truncate(cut.len() / 2);
    assert!(matches!(fault(cut).await, ArchiveFault::Malformed { .. } | ArchiveFault::NoChecksums));

    let nothing_measured = binding_line("kernel", b"k");
    let archive = Archive::default().file("kernel", b"k").file("sha256sum.txt", nothing_measured.as_bytes()).finish();
    let incomplete = fault_of(archive, &os_image_hash(nothing_measured.as_bytes()), FetchLimits::default()).await;
    assert!(matches!(incomplete, ArchiveFault::Incomplete { .. }), "{incomplete}");
}

#[tokio::test]
async fn size_number_and_time_are_bounded() {
    let small = FetchLimits { unpacked_bytes: 1 << 20, ..FetchLimits::default() };
    let (hash, bomb) = whole(|archive| archive.file("zeros", &vec![0; 2 << 20]));
    assert!(bomb.len() < 40_000, "it is small before it is unpacked");
    assert!(matches!(fault_of(bomb, &hash, small).await, ArchiveFault::TooLarge { limit } if limit == 1 << 20));
    let (hash, extended) = whole(|archive| archive.entry(EntryType::XHeader, b"pax", &vec![b'x'; 6 << 20]));
    assert!(matches!(fault_of(extended, &hash, small).await, ArchiveFault::TooLarge { .. }), "what is skipped counts");
    let (hash, many) = whole(|archive| (0..2000).fold(archive, |archive, _| archive.entry(EntryType::Directory, b"d/", b"")));
    assert!(matches!(fault_of(many, &hash, FetchLimits::default()).await, ArchiveFault::TooManyEntries { .. }));

    let (hash, archive) = whole(|archive| archive);
    let (server, dir) = (Server::start(archive).await, tempfile::tempdir().unwrap());
    let error = server.fetcher(dir.path(), FetchLimits { compressed_bytes: 100, ..small }).image(&hash).await.unwrap_err();
    assert!(matches!(error, FetchError::TooLarge { limit: 100, .. }));

    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let template = format!("http://{}/{{OS_IMAGE_HASH}}", silent.local_addr().unwrap());
    let limits = FetchLimits { timeout: Duration::from_millis(50), ..small };
    let error = ImageFetcher::open(&template, system_tls(), dir.path(), limits).unwrap().image(&hash).await.unwrap_err();
    assert!(matches!(error, FetchError::Timeout { .. } | FetchError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_failure_is_remembered_for_a_while_and_the_cache_is_bounded() {
    let (hash, archive) = whole(|archive| archive);
    let (server, dir) = (Server::start(None).await, tempfile::tempdir().unwrap());
    let fetcher = server.fetcher(dir.path(), FetchLimits { images: 1, ..FetchLimits::default() });

    for _ in 0..3 {
        assert_eq!(fetcher.image(&hash).await.unwrap_err().code(), "image/fetch-not-published");
    }
    assert_eq!(server.requests(), 1);

    let old = dir.path().join("ab".repeat(32));
    std::fs::create_dir(&old).unwrap();
    *server.body.lock().unwrap() = Some(archive);
    server.fetcher(dir.path(), FetchLimits { images: 1, ..FetchLimits::default() }).image(&hash).await.unwrap();
    assert!(!old.exists(), "the older one gave way");
}

#[test]
fn addresses_without_a_place_for_the_hash_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for template in ["http://h/x.tar.gz", "file:///{OS_IMAGE_HASH}", "{OS_IMAGE_HASH}", "http://h/{OS_IMAGE_HASH}?x=1"] {
        let error = ImageFetcher::open(template, system_tls(), dir.path(), FetchLimits::default()).unwrap_err();
        assert_eq!(error.code(), "image/fetch-address", "{template}");
    }
}
