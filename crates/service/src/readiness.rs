//! Telling the one who started us that requests are served.

use std::{
    env, io,
    os::linux::net::SocketAddrExt as _,
    os::unix::net::{SocketAddr, UnixDatagram},
    path::Path,
};

/// Announces readiness: `READY=1` to systemd's `$NOTIFY_SOCKET` where set, and `<pid>\n` into `file` where given.
///
/// Errors: either could not be written.
pub fn announce(file: Option<&Path>) -> io::Result<()> {
    if let Some(file) = file {
        crate::fs::write_atomic(file, format!("{}\n", std::process::id()).as_bytes(), 0o644)?;
    }
    if let Some(name) = env::var_os("NOTIFY_SOCKET").and_then(|name| name.into_string().ok()) {
        notify(&name, b"READY=1")?;
    }
    Ok(())
}

/// `name`: a path, or `@` and a name in the abstract namespace.
fn notify(name: &str, message: &[u8]) -> io::Result<()> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    UnixDatagram::unbound()?.send_to_addr(message, &address).map(|_| ())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn notify_reaches_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();

        notify(path.to_str().unwrap(), b"READY=1").unwrap();

        let mut buffer = [0; 32];
        let n = receiver.recv(&mut buffer).unwrap();
        assert_eq!(buffer.get(..n).unwrap(), b"READY=1");
    }

    #[test]
    fn file_holds_the_process_id() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ready");

        announce(Some(&path)).unwrap();

        assert_eq!(std::fs::read_to_string(path).unwrap(), format!("{}\n", std::process::id()));
    }
}
