//! Why there is no image.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use dstack_api::UserFacing;
use dstack_manifest::OsImageHash;
use dstack_measurement::checksum::ChecksumError;
use dstack_rpc::{ClientError, EndpointError};

/// What is wrong with an archive. Its publisher, or whoever serves it, is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveFault {
    /// Not gzip, or not tar inside.
    #[error("it is not a gzip-compressed tar archive ({reason})")]
    Malformed {
        /// What the reader met.
        reason: String,
    },
    /// A link, a device, or another thing that is neither file nor directory.
    #[error("entry {name:?} is neither a regular file nor a directory")]
    Kind {
        /// Its name.
        name: String,
    },
    /// A name that leads elsewhere.
    #[error("entry {name:?} does not stay in its directory")]
    Traversal {
        /// The name.
        name: String,
    },
    /// The same file twice.
    #[error("entry {name:?} is there twice")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// More bytes than allowed once unpacked.
    #[error("it unpacks to more than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// More entries than allowed.
    #[error("it has more than {limit} entries")]
    TooManyEntries {
        /// The limit.
        limit: usize,
    },
    /// No `sha256sum.txt`.
    #[error("it has no sha256sum.txt")]
    NoChecksums,
    /// `sha256sum.txt` is not the one asked for, is malformed, or does not fit a file.
    #[error(transparent)]
    Checksum(#[from] ChecksumError),
    /// What a measurement needs is missing.
    #[error("{what}")]
    Incomplete {
        /// What is missing.
        what: String,
    },
}

/// Why there is no image.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The address template.
    #[error("image address {template:?}: {reason}")]
    Address {
        /// As configured.
        template: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The address with the hash in place.
    #[error(transparent)]
    Endpoint(Arc<EndpointError>),
    /// The server has no such image.
    #[error("os image {os_image_hash} is not at {url}")]
    NotPublished {
        /// The image.
        os_image_hash: OsImageHash,
        /// Where it was asked for.
        url: String,
    },
    /// An answer that is no image.
    #[error("{url} answers HTTP {status}")]
    Refused {
        /// Where it was asked for.
        url: String,
        /// The status.
        status: u16,
    },
    /// No answer, or one that broke off.
    #[error("download of {url}")]
    Unreachable {
        /// Where it was asked for.
        url: String,
        /// What happened.
        source: Arc<ClientError>,
    },
    /// Too slow.
    #[error("download of {url} took longer than {} s", limit.as_secs())]
    Timeout {
        /// Where it was asked for.
        url: String,
        /// The limit.
        limit: Duration,
    },
    /// Too many bytes.
    #[error("{url} is larger than {limit} bytes")]
    TooLarge {
        /// Where it was asked for.
        url: String,
        /// The limit.
        limit: u64,
    },
    /// The archive is refused.
    #[error("archive of os image {os_image_hash}: {fault}")]
    Archive {
        /// The image.
        os_image_hash: OsImageHash,
        /// What is wrong.
        fault: ArchiveFault,
    },
    /// The cache's disk.
    #[error("image cache {}", path.display())]
    Disk {
        /// File or directory.
        path: PathBuf,
        /// What the kernel said.
        source: Arc<io::Error>,
    },
    /// Too many downloads.
    #[error("other images are being downloaded, no more at a time")]
    Busy,
    /// Our own fault.
    #[error("unpacking broke off")]
    BrokeOff,
}

impl FetchError {
    pub(super) fn disk(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Disk { path, source: Arc::new(source) }
    }
}

impl UserFacing for FetchError {
    fn code(&self) -> &'static str {
        match self {
            Self::Address { .. } | Self::Endpoint(_) => "image/fetch-address",
            Self::NotPublished { .. } => "image/fetch-not-published",
            Self::Refused { .. } => "image/fetch-refused",
            Self::Unreachable { .. } => "image/fetch-unreachable",
            Self::Timeout { .. } => "image/fetch-timeout",
            Self::TooLarge { .. } => "image/fetch-too-large",
            Self::Archive { .. } => "image/fetch-archive",
            Self::Disk { .. } => "image/fetch-disk",
            Self::Busy => "image/fetch-busy",
            Self::BrokeOff => "rpc/internal",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Address { .. } | Self::Endpoint(_) => "give an http or https address with {OS_IMAGE_HASH} where the hash belongs",
            Self::NotPublished { .. } => "ask the image's publisher for its archive, and check the image hash",
            Self::Refused { .. } => "check the address; redirects are not followed",
            Self::Unreachable { .. } => "check that the server runs and that this machine reaches it",
            Self::Timeout { .. } => "allow more time, or use a faster server",
            Self::TooLarge { .. } => "check the image hash; allow more bytes only if you know the image",
            Self::Archive { .. } => "do not use this server's image; ask the publisher",
            Self::Disk { .. } => "check that the image cache is writable and has room",
            Self::Busy => "try again in a few seconds",
            Self::BrokeOff => "read the service's log; this is a defect worth reporting",
        }
        .to_owned()
    }
}
