//! Reading the logs of a VM.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{Stream, stream};

use dstack_service::text::strip_escapes;

/// How far back a tail may go.
const TAIL_LIMIT: u64 = 8 << 20;
const CHUNK: u64 = 64 << 10;
const POLL: Duration = Duration::from_millis(200);
const HEARTBEAT: Duration = Duration::from_secs(60);

/// The last `lines` lines, escape sequences removed, at most `limit` bytes of the file looked at. Missing file: nothing.
pub(crate) fn tail(path: &Path, lines: usize, limit: u64) -> String {
    let text = read_tail(path, lines, limit).map(|(bytes, _)| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    text.lines().map(|line| strip_escapes(line).trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// The last lines as bytes, and where they end in the file.
fn read_tail(path: &Path, lines: usize, limit: u64) -> io::Result<(Vec<u8>, u64)> {
    let mut file = File::open(path)?;
    let end = file.metadata()?.len();
    let start = end.saturating_sub(limit.min(TAIL_LIMIT));
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(end - start).read_to_end(&mut bytes)?;
    let mut newlines = bytes.iter().enumerate().rev().filter(|(index, byte)| **byte == b'\n' && index + 1 != bytes.len());
    let cut = if lines == 0 { bytes.len() } else { newlines.nth(lines - 1).map_or(0, |(index, _)| index + 1) };
    Ok((bytes.split_off(cut), end))
}

/// How a log is read.
#[derive(Debug, Clone)]
pub(crate) struct LogRequest {
    pub(crate) path: PathBuf,
    pub(crate) lines: usize,
    pub(crate) follow: bool,
    pub(crate) ansi: bool,
}

struct Follower {
    request: LogRequest,
    /// `None` before the tail was sent.
    position: Option<u64>,
    last_sent: Instant,
    /// An unfinished line: sequences and characters may be cut anywhere.
    pending: Vec<u8>,
}

/// The log as a stream: the tail, then, when following, what is appended; a heartbeat line after a minute of silence.
pub(crate) fn stream_log(request: LogRequest) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let follower = Follower { request, position: None, last_sent: Instant::now(), pending: Vec::new() };
    stream::unfold(Some(follower), async |follower| {
        let mut follower = follower?;
        loop {
            let Some(position) = follower.position else {
                let (bytes, end) = read_tail(&follower.request.path, follower.request.lines, TAIL_LIMIT).unwrap_or_default();
                follower.position = Some(end);
                let text = follower.take(&bytes, !follower.request.follow);
                let next = follower.request.follow.then_some(follower);
                return Some((Ok(text), next));
            };
            let bytes = follower.read_on(position);
            if !bytes.is_empty() {
                let text = follower.take(&bytes, false);
                if !text.is_empty() {
                    return Some((Ok(text), Some(follower)));
                }
            }
            if follower.last_sent.elapsed() >= HEARTBEAT {
                follower.last_sent = Instant::now();
                return Some((Ok(Bytes::from_static(b"[vmm heartbeat]\n")), Some(follower)));
            }
            tokio::time::sleep(POLL).await;
        }
    })
}

impl Follower {
    fn read_on(&mut self, position: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let Ok(mut file) = File::open(&self.request.path) else { return bytes };
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        // Shorter than before: it was rotated.
        let position = if length < position { 0 } else { position };
        let read = file.seek(SeekFrom::Start(position)).and_then(|_| file.take(CHUNK).read_to_end(&mut bytes));
        self.position = Some(position + read.unwrap_or(0) as u64);
        bytes
    }

    fn take(&mut self, bytes: &[u8], is_last: bool) -> Bytes {
        if !bytes.is_empty() {
            self.last_sent = Instant::now();
        }
        if self.request.ansi {
            return Bytes::copy_from_slice(bytes);
        }
        self.pending.extend_from_slice(bytes);
        let oversized = self.pending.len() as u64 > CHUNK;
        let end = if is_last || oversized {
            self.pending.len()
        } else {
            self.pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |index| index + 1)
        };
        let rest = self.pending.split_off(end);
        let text = strip_escapes(&String::from_utf8_lossy(&self.pending));
        self.pending = rest;
        Bytes::from(text)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::Write as _;

    use futures_util::StreamExt as _;

    use super::*;

    #[test]
    fn tail_counts_lines_and_cleans_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, "one\ntwo\r\n\u{1b}[1mthree\u{1b}[0m\n").unwrap();

        assert_eq!(tail(&path, 2, 1000), "two\nthree");
        assert_eq!(tail(&path, 0, 1000), "");
        assert_eq!(tail(&path, 99, 1000), "one\ntwo\nthree");
        assert_eq!(tail(&directory.path().join("absent"), 5, 1000), "");
    }

    #[tokio::test]
    async fn following_sees_what_is_appended_and_survives_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut writer = File::options().create(true).append(true).open(&path).unwrap();
        writer.write_all(b"old\nnewer\n").unwrap();
        let request = LogRequest { path: path.clone(), lines: 1, follow: true, ansi: false };
        let mut log = Box::pin(stream_log(request));

        assert_eq!(log.next().await.unwrap().unwrap(), "newer\n");
        writer.write_all(b"appended\nhalf").unwrap();
        assert_eq!(log.next().await.unwrap().unwrap(), "appended\n");
        writer.set_len(0).unwrap();
        writer.write_all(b"way\n").unwrap();
        assert_eq!(log.next().await.unwrap().unwrap(), "halfway\n");
    }

    #[tokio::test]
    async fn without_follow_the_stream_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, "a\nb").unwrap();

        let log: Vec<_> = stream_log(LogRequest { path, lines: 5, follow: false, ansi: false }).collect().await;
        assert_eq!(log.len(), 1);
        assert_eq!(log.first().unwrap().as_ref().unwrap(), "a\nb");
    }
}
