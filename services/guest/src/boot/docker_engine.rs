//! The container engine's API, as little of it as the boot needs: HTTP/1.1 on its Unix socket.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Most bytes of an answer that are kept.
const MAX_ANSWER_BYTES: u64 = 8 << 20;

/// An answer of the engine.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body, cut at 8 MiB.
    pub body: Vec<u8>,
}

/// The engine at a Unix socket.
#[derive(Debug, Clone)]
pub struct DockerEngine {
    socket: PathBuf,
}

impl DockerEngine {
    /// The engine behind `socket`.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits until the engine takes connections; it answers them when it is ready.
    ///
    /// Errors: it does not within `patience`.
    pub fn wait_until_listening(&self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            match UnixStream::connect(&self.socket) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Waits until the engine answers.
    ///
    /// Errors: it does not within `patience`.
    pub fn wait_until_ready(&self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            match self.get("/_ping", patience) {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) if Instant::now() >= deadline => {
                    return Err(io::Error::other(format!("the engine answers with HTTP {}", answer.status)));
                }
                Err(error) if Instant::now() >= deadline => return Err(error),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Sends a GET.
    ///
    /// Errors: no connection, or no HTTP answer in time.
    pub fn get(&self, path: &str, patience: Duration) -> io::Result<Answer> {
        let mut stream = self.connect(patience)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n")?;
        read_answer(stream)
    }

    fn connect(&self, patience: Duration) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(stream)
    }
}

fn read_answer(stream: UnixStream) -> io::Result<Answer> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the engine's answer is not HTTP");
    let mut reader = BufReader::new(stream.take(MAX_ANSWER_BYTES));
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(malformed)?;
    let (mut chunked, mut length) = (false, None);
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(malformed());
        }
        let header = line.trim().to_ascii_lowercase();
        match header.split_once(':') {
            Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
            Some(("content-length", value)) => length = value.trim().parse::<u64>().ok(),
            Some(_) => {}
            None if header.is_empty() => break,
            None => return Err(malformed()),
        }
    }
    let mut body = Vec::new();
    if chunked {
        read_chunks(&mut reader, &mut body)?;
    } else {
        reader.take(length.unwrap_or(MAX_ANSWER_BYTES)).read_to_end(&mut body)?;
    }
    Ok(Answer { status, body })
}

fn read_chunks(reader: &mut impl io::BufRead, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim().split(';').next().unwrap_or_default(), 16)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the engine's answer has a malformed chunk"))?;
        if size == 0 {
            return Ok(());
        }
        reader.take(size).read_to_end(body)?;
        line.clear();
        reader.read_line(&mut line)?;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::*;

    fn served(answer: &'static [u8]) -> (tempfile::TempDir, DockerEngine, thread::JoinHandle<Vec<u8>>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = Vec::new();
            let mut byte = [0];
            while !seen.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                seen.push(byte[0]);
            }
            stream.write_all(answer).unwrap();
            seen
        });
        (directory, DockerEngine::new(path), server)
    }

    #[test]
    fn reads_answers_with_length_and_in_chunks() {
        for answer in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        ] {
            let (_directory, engine, server) = served(answer);

            let got = engine.get("/x", Duration::from_secs(5)).unwrap();

            assert_eq!((got.status, got.body.as_slice()), (200, &b"hello"[..]));
            server.join().unwrap();
        }
    }

    #[test]
    fn what_is_not_http_is_an_error() {
        let (_directory, engine, _server) = served(b"nonsense\r\n");

        assert!(engine.get("/x", Duration::from_secs(5)).is_err());
    }
}
