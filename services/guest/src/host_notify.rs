//! Tells the host how far the boot is. Best effort: the host may not listen, and nothing of the boot depends on it.

use std::{
    io::{self, Read as _, Write as _},
    os::fd::AsRawFd as _,
    sync::mpsc,
    thread,
    time::Duration,
};

use dstack_api::wire::{self, guest_event};
use nix::sys::{
    socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, setsockopt, socket, sockopt},
    time::{TimeVal, TimeValLike as _},
};
use serde::Serialize;

/// Payload bytes a host keeps; a longer payload is cut.
pub const MAX_PAYLOAD_BYTES: usize = 4096;

/// Where the host API is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostAddress {
    /// Context id of the host.
    pub cid: u32,
    /// Port.
    pub port: u32,
}

impl HostAddress {
    /// CID 2, port 10000: where the host API is unless the host says otherwise.
    pub const DEFAULT: Self = Self { cid: wire::HOST_CID, port: wire::HOST_API_PORT };

    /// Reads `vsock://<cid>:<port>/api`. Anything else is not an address we can speak to.
    #[must_use]
    pub fn parse(url: &str) -> Option<Self> {
        let (cid, port) = url.strip_prefix("vsock://")?.split('/').next()?.split_once(':')?;
        Some(Self { cid: cid.parse().ok()?, port: port.parse().ok()? })
    }
}

#[derive(Serialize)]
struct Notification<'a> {
    event: &'a str,
    payload: &'a str,
}

/// Sends one notification and waits for the answer's status line.
///
/// Errors: no route, no listener, no answer in time, or a refusal.
pub fn notify(address: HostAddress, event: &str, payload: &str, patience: Duration) -> io::Result<()> {
    let fd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let limit = TimeVal::milliseconds(i64::try_from(patience.as_millis()).unwrap_or(i64::MAX));
    setsockopt(&fd, sockopt::ReceiveTimeout, &limit)?;
    setsockopt(&fd, sockopt::SendTimeout, &limit)?;
    // Connecting has its own limit in the kernel, 2 s.
    connect(fd.as_raw_fd(), &VsockAddr::new(address.cid, address.port))?;
    let mut stream = std::fs::File::from(fd);
    stream.write_all(&render_request(event, payload)?)?;
    let mut answer = [0_u8; 64];
    let got = stream.read(&mut answer)?;
    let status = answer.get(..got).unwrap_or_default();
    if status.starts_with(b"HTTP/1.") && status.get(9..12) == Some(b"200") {
        return Ok(());
    }
    Err(io::Error::other(format!("host API answered {:?}", String::from_utf8_lossy(status).lines().next().unwrap_or_default())))
}

fn render_request(event: &str, payload: &str) -> io::Result<Vec<u8>> {
    let cut = payload.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= MAX_PAYLOAD_BYTES).last().unwrap_or(0);
    let body = serde_json::to_vec(&Notification { event, payload: payload.get(..cut).unwrap_or_default() })?;
    let head = format!(
        "POST /api/Notify HTTP/1.1\r\nHost: host\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    Ok([head.into_bytes(), body].concat())
}

enum Message {
    Event { event: String, payload: String },
    Flush(mpsc::Sender<()>),
}

/// Sends notifications in order from a thread of its own, so that a slow host does not slow the boot.
#[derive(Debug, Clone)]
pub struct Notifier {
    queue: mpsc::Sender<Message>,
}

impl Notifier {
    /// Sends to `address`.
    #[must_use]
    pub fn start(address: HostAddress) -> Self {
        Self::with_sink(move |event, payload| {
            if let Err(error) = notify(address, event, payload, Duration::from_secs(5)) {
                crate::console::line(format_args!("host was not told {event}: {error}"));
            }
        })
    }

    /// Hands notifications to `sink`.
    #[must_use]
    pub fn with_sink(mut sink: impl FnMut(&str, &str) + Send + 'static) -> Self {
        let (queue, messages) = mpsc::channel();
        thread::spawn(move || {
            for message in messages {
                match message {
                    Message::Event { event, payload } => sink(&event, &payload),
                    Message::Flush(done) => drop(done.send(())),
                }
            }
        });
        Self { queue }
    }

    /// Queues one notification.
    pub fn send(&self, event: &str, payload: &str) {
        let _ = self.queue.send(Message::Event { event: event.to_owned(), payload: payload.to_owned() });
    }

    /// Queues a `boot.progress` notification.
    pub fn progress(&self, what: &str) {
        crate::console::line(what);
        self.send(guest_event::BOOT_PROGRESS, what);
    }

    /// Waits until everything queued so far was sent, at most `patience`.
    pub fn flush(&self, patience: Duration) {
        let (done, wait) = mpsc::channel();
        if self.queue.send(Message::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(patience);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn addresses_are_read_and_others_refused() {
        assert_eq!(HostAddress::parse("vsock://2:10001/api"), Some(HostAddress { cid: 2, port: 10_001 }));
        assert_eq!(HostAddress::parse("vsock://2:9"), Some(HostAddress { cid: 2, port: 9 }));
        for bad in ["", "http://2:1", "vsock://2", "vsock://x:1/api", "vsock://2:99999999999/api"] {
            assert_eq!(HostAddress::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_long_payload_is_cut_between_characters() {
        let request = render_request("boot.error", &"é".repeat(5000)).unwrap();

        let text = String::from_utf8(request).unwrap();
        let body: serde_json::Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(body["payload"].as_str().unwrap().len(), 4096);
    }

    #[test]
    fn notifications_keep_their_order_and_flush_waits_for_them() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let notifier = Notifier::with_sink(move |event, payload| sink.lock().unwrap().push(format!("{event}={payload}")));

        notifier.send("boot.progress", "one");
        notifier.send("boot.progress", "two");
        notifier.flush(Duration::from_secs(10));

        assert_eq!(*seen.lock().unwrap(), ["boot.progress=one", "boot.progress=two"]);
    }
}
