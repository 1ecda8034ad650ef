//! Orders to the boot process over a Unix socket that only root may use: from the guest agent and from the small
//! commands that scripts call. One JSON line in, one line out.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};

const MAX_ORDER_BYTES: u64 = 16 << 10;
const PATIENCE: Duration = Duration::from_secs(10);

/// What can be ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "order", deny_unknown_fields)]
pub enum Order {
    /// Stop the application and power off.
    PowerOff,
    /// Stop the application and boot again.
    Reboot,
    /// Restart a service.
    Restart {
        /// `dockerd`, `containerd` or `dstack-guest-agent`.
        service: String,
    },
    /// Tell the host something.
    Notify {
        /// Event.
        event: String,
        /// Payload.
        payload: String,
    },
    /// DHCP gave an address.
    NetworkUp,
}

/// Listens on `path`, mode 0600, and hands orders on.
///
/// Errors: the socket cannot be made.
pub fn listen(path: &Path) -> io::Result<mpsc::UnboundedReceiver<Order>> {
    use std::os::unix::fs::PermissionsExt as _;
    let _ = std::fs::remove_file(path);
    let listener = tokio::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let (orders, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let orders = orders.clone();
            tokio::spawn(tokio::time::timeout(PATIENCE, async move {
                let mut stream = tokio::io::BufReader::new(stream);
                let mut line = String::new();
                let _ = (&mut stream).take(MAX_ORDER_BYTES).read_line(&mut line).await;
                let answer = match serde_json::from_str(&line) {
                    Ok(order) => {
                        if orders.send(order).is_ok() {
                            "ok\n".to_owned()
                        } else {
                            "shutting down\n".to_owned()
                        }
                    }
                    Err(error) => format!("{error}\n"),
                };
                let _ = stream.get_mut().write_all(answer.as_bytes()).await;
            }));
        }
    });
    Ok(receiver)
}

/// Gives an order.
///
/// Errors: nobody listens, or the order is refused.
pub fn send(path: &Path, order: &Order) -> io::Result<()> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_string(order)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    if answer.trim() == "ok" { Ok(()) } else { Err(io::Error::other(answer.trim().to_owned())) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_order_arrives() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("init.sock");
        let mut orders = listen(&path).unwrap();

        let order = Order::Notify { event: "boot.progress".to_owned(), payload: "x\ny".to_owned() };
        let sent = order.clone();
        tokio::task::spawn_blocking(move || send(&path, &sent)).await.unwrap().unwrap();

        assert_eq!(orders.recv().await.unwrap(), order);
    }

    #[tokio::test]
    async fn what_is_no_order_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("init.sock");
        let mut orders = listen(&path).unwrap();

        let answer = tokio::task::spawn_blocking(move || {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(b"{\"order\":\"explode\"}\n").unwrap();
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer).unwrap();
            answer
        });

        assert!(answer.await.unwrap().contains("unknown variant"));
        assert!(orders.try_recv().is_err());
    }
}
