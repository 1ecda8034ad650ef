//! Where connections come from.

use std::{
    fs, io,
    net::SocketAddr,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use dstack_api::UserFacing;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket, sockopt::AcceptConn};
use rustls::ServerConfig;
use tokio::net::{TcpListener, UnixListener};
use tokio_vsock::{VsockAddr, VsockListener};

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Another process has the address.
    #[error("{address} is in use by another process")]
    InUse {
        /// What was asked for.
        address: String,
    },
    /// Anything else the kernel said.
    #[error("listening on {address}")]
    Io {
        /// What was asked for.
        address: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The path exists and is not a socket.
    #[error("{} exists and is not a socket", path.display())]
    NotASocket {
        /// What was asked for.
        path: PathBuf,
    },
}

impl UserFacing for ListenError {
    fn code(&self) -> &'static str {
        match self {
            Self::InUse { .. } => "rpc/address-in-use",
            Self::Io { .. } => "rpc/cannot-listen",
            Self::NotASocket { .. } => "rpc/not-a-socket",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::InUse { address } => format!("stop the process that listens on {address}, or configure another address"),
            Self::Io { address, .. } => format!("check that {address} can be used by this user"),
            Self::NotASocket { path } => format!("move {} away, or configure another path", path.display()),
        }
    }
}

pub(crate) enum Kind {
    Tcp(TcpListener),
    Tls(TcpListener, Arc<ServerConfig>),
    Unix {
        listener: UnixListener,
        /// Removes the socket when the listener goes; `None` if it is somebody else's to remove.
        _file: Option<SocketFile>,
    },
    Vsock(VsockListener),
}

/// An open listener; [`crate::serve`] runs it.
pub struct Listener {
    pub(crate) kind: Kind,
}

impl Listener {
    /// Plain HTTP on TCP. Port 0 picks a free one, see [`Listener::local_addr`].
    ///
    /// Errors: the address is taken or not ours.
    pub async fn tcp(address: SocketAddr) -> Result<Self, ListenError> {
        Ok(Self { kind: Kind::Tcp(open_tcp(address).await?) })
    }

    /// HTTPS on TCP; whether clients must show a certificate is up to `config`.
    ///
    /// Errors: the address is taken or not ours.
    pub async fn tls(address: SocketAddr, config: impl Into<Arc<ServerConfig>>) -> Result<Self, ListenError> {
        Ok(Self { kind: Kind::Tls(open_tcp(address).await?, config.into()) })
    }

    /// HTTP on a Unix socket with permission bits `mode`, never wider for a moment. A stale socket file is replaced,
    /// a live one is refused. The file is removed when the listener goes.
    ///
    /// Errors: a live socket, another kind of file, or no access.
    pub async fn unix(path: impl AsRef<Path>, mode: u32) -> Result<Self, ListenError> {
        let path = path.as_ref();
        let address = format!("unix:{}", path.display());
        remove_stale(path, &address).await?;
        let io_error = |source: io::Error| ListenError::Io { address: address.clone(), source };
        let std_listener = bind_unix(path, mode).map_err(io_error)?;
        let file = SocketFile::new(path).map_err(io_error)?;
        let listener = UnixListener::from_std(std_listener).map_err(io_error)?;
        Ok(Self { kind: Kind::Unix { listener, _file: Some(file) } })
    }

    /// HTTP on a Unix socket that another process opened with [`bind_unix`], keeps open, and removes. Connections made while nobody
    /// serves it wait in its queue.
    ///
    /// Errors: not a socket that listens.
    pub fn inherited(fd: OwnedFd) -> Result<Self, ListenError> {
        let io_error = |source: io::Error| ListenError::Io { address: "an inherited socket".to_owned(), source };
        if !getsockopt(&fd, AcceptConn).map_err(|error| io_error(error.into()))? {
            return Err(io_error(io::Error::from(io::ErrorKind::InvalidInput)));
        }
        let listener = std::os::unix::net::UnixListener::from(fd);
        listener.set_nonblocking(true).map_err(io_error)?;
        Ok(Self { kind: Kind::Unix { listener: UnixListener::from_std(listener).map_err(io_error)?, _file: None } })
    }

    /// HTTP on kernel vsock. `cid` is usually `VMADDR_CID_ANY` (`u32::MAX`).
    ///
    /// Errors: no vsock here, or the port is taken.
    pub fn vsock(cid: u32, port: u32) -> Result<Self, ListenError> {
        let listener =
            VsockListener::bind(VsockAddr::new(cid, port)).map_err(|source| listen_error(format!("vsock://{cid}:{port}"), source))?;
        Ok(Self { kind: Kind::Vsock(listener) })
    }

    /// TCP address in use; `None` for other kinds.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.kind {
            Kind::Tcp(listener) | Kind::Tls(listener, _) => listener.local_addr().ok(),
            Kind::Unix { .. } | Kind::Vsock(_) => None,
        }
    }
}

fn listen_error(address: String, source: io::Error) -> ListenError {
    if source.kind() == io::ErrorKind::AddrInUse { ListenError::InUse { address } } else { ListenError::Io { address, source } }
}

async fn open_tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| listen_error(address.to_string(), source))
}

async fn remove_stale(path: &Path, address: &str) -> Result<(), ListenError> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket { path: path.to_owned() });
    }
    match tokio::net::UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| ListenError::Io { address: address.to_owned(), source })
        }
        _ => Err(ListenError::InUse { address: address.to_owned() }),
    }
}

/// A listening Unix socket with permission bits `mode`, never wider for a moment; it does not block. `path` must not exist.
///
/// # Errors
/// As the kernel says.
pub fn bind_unix(path: &Path, mode: u32) -> io::Result<std::os::unix::net::UnixListener> {
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    // Linux gives the file the mode of the unbound socket, less the umask.
    nix::sys::stat::fchmod(&fd, nix::sys::stat::Mode::from_bits_truncate(mode))?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    listen(&fd, Backlog::new(128)?)?;
    Ok(fd.into())
}

/// Removes the socket file it was made for, not one that replaced it.
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), inode: (metadata.dev(), metadata.ino()) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.inode);
        if ours {
            let _gone_already = fs::remove_file(&self.path);
        }
    }
}
