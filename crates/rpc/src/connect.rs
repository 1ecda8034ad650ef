//! One connection to an endpoint.

use std::{io, path::Path, sync::Arc};

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};
use tokio_vsock::{VsockAddr, VsockStream};

use crate::{ClientError, endpoint::Target};

pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Longest reply of vhost-device-vsock to `CONNECT`.
const CONNECT_REPLY_LIMIT: usize = 64;

/// Opens a connection.
///
/// Errors: whatever stops it; the caller sets the deadline.
pub(crate) async fn connect(target: &Target, tls: Option<&Arc<ClientConfig>>) -> Result<Box<dyn Io>, ClientError> {
    match target {
        Target::Tcp { host, port, tls: false } => Ok(Box::new(connect_tcp(host, *port).await.map_err(ClientError::Connect)?)),
        Target::Tcp { host, port, tls: true } => {
            let config = tls.ok_or(ClientError::NoTlsConfig)?;
            let stream = connect_tcp(host, *port).await.map_err(ClientError::Connect)?;
            let bare_host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let name = ServerName::try_from(bare_host).map_err(|error| ClientError::Tls(io::Error::other(error)))?;
            let stream = tokio_rustls::TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
            Ok(Box::new(stream.map_err(ClientError::Tls)?))
        }
        Target::Unix(path) => Ok(Box::new(UnixStream::connect(path).await.map_err(ClientError::Connect)?)),
        Target::Vsock { cid, port } => {
            let stream = VsockStream::connect(VsockAddr::new(*cid, *port)).await;
            Ok(Box::new(stream.map_err(ClientError::Connect)?))
        }
        Target::VsockUds { path, port } => Ok(Box::new(connect_vsock_uds(path, *port).await.map_err(ClientError::Connect)?)),
    }
}

async fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host.trim_start_matches('[').trim_end_matches(']'), port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// `CONNECT <port>\n`, then `OK <n>\n`; after that the stream belongs to the guest.
async fn connect_vsock_uds(path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut reply = Vec::new();
    loop {
        // Byte by byte: what follows the newline is the guest's.
        let byte = stream.read_u8().await.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                io::Error::new(io::ErrorKind::ConnectionRefused, format!("nothing in the guest listens on port {port}"))
            }
            _ => error,
        })?;
        if byte == b'\n' {
            break;
        }
        reply.push(byte);
        if reply.len() > CONNECT_REPLY_LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the vsock device's reply has no end"));
        }
    }
    if reply.starts_with(b"OK") {
        return Ok(stream);
    }
    let reply = String::from_utf8_lossy(&reply).into_owned();
    Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("the vsock device said `{reply}`")))
}
