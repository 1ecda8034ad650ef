//! The QEMU machine protocol, as much as a shutdown needs.

use std::{io, path::Path, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
};

const DEADLINE: Duration = Duration::from_secs(5);
const LINE_LIMIT: u64 = 64 << 10;
const LINES_LIMIT: usize = 64;

/// Presses the power button.
///
/// Errors: no QEMU, or it refuses.
pub(crate) async fn system_powerdown(socket: &Path) -> io::Result<()> {
    tokio::time::timeout(DEADLINE, execute(socket, "system_powerdown")).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn execute(socket: &Path, command: &str) -> io::Result<()> {
    let stream = UnixStream::connect(socket).await?;
    let mut stream = BufReader::new(stream);
    let greeting = read_line(&mut stream).await?;
    if greeting.get("QMP").is_none() {
        return Err(invalid("no greeting"));
    }
    for command in ["qmp_capabilities", command] {
        stream.write_all(format!("{{\"execute\":\"{command}\"}}\n").as_bytes()).await?;
        answer(&mut stream).await?;
    }
    Ok(())
}

/// Events may come before the answer.
async fn answer(stream: &mut BufReader<UnixStream>) -> io::Result<()> {
    for _ in 0..LINES_LIMIT {
        let line = read_line(stream).await?;
        if line.get("return").is_some() {
            return Ok(());
        }
        if let Some(error) = line.get("error") {
            return Err(io::Error::other(error.to_string()));
        }
    }
    Err(invalid("no answer"))
}

async fn read_line(stream: &mut BufReader<UnixStream>) -> io::Result<serde_json::Value> {
    let mut line = Vec::new();
    stream.take(LINE_LIMIT).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&line).map_err(|_| invalid("not JSON"))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("QMP: {what}"))
}
