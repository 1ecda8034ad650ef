//! `dstack logs`.

use std::io::{self, Write as _};

use dstack_rpc::Client;
use http::StatusCode;

use super::Vmm;
use crate::{
    args::{Channel, LogsArgs},
    failure::{Failure, Outcome},
    output::Output,
};

/// The VMM sends this when nothing happens, so that connections stay open.
const HEARTBEAT: &str = "[vmm heartbeat]";

/// Prints a VM's log, and goes on with `--follow`.
///
/// Errors: unknown VM, or the VMM refuses.
pub(crate) async fn logs(args: &LogsArgs, _: Output) -> Outcome {
    let vmm = Vmm::connect(&args.vm.vmm)?;
    let vm = vmm.find(&args.vm.name).await?;
    let channel = match args.channel {
        Channel::Serial => "serial",
        Channel::Stdout => "stdout",
        Channel::Stderr => "stderr",
    };
    let path = format!("/logs?id={}&follow={}&ansi=false&lines={}&ch={channel}", vm.id, args.follow, args.lines);
    let client: &Client = &vmm.api.0;
    let mut stream = client.stream(&path).await?;
    if stream.status != StatusCode::OK {
        let mut text = Vec::new();
        while let Some(chunk) = stream.chunk().await? {
            text.extend_from_slice(&chunk);
            if text.len() > 4096 {
                break;
            }
        }
        let cause = format!("the VMM answered {}: {}", stream.status, String::from_utf8_lossy(&text).trim());
        return Err(Failure::new("vm/no-log", cause, "check that the VM was started once"));
    }
    let mut filter = LineFilter::default();
    loop {
        let chunk = tokio::select! {
            chunk = stream.chunk() => chunk?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let Some(chunk) = chunk else { break };
        if !write(&filter.take(&chunk)) {
            return Ok(());
        }
    }
    write(&filter.rest());
    Ok(())
}

/// Whether the reader is still there.
fn write(bytes: &[u8]) -> bool {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).is_ok()
}

/// Whole lines without heartbeats and without control characters: the log is the guest's, the terminal is ours.
#[derive(Debug, Default)]
struct LineFilter {
    partial: Vec<u8>,
}

impl LineFilter {
    fn take(&mut self, chunk: &[u8]) -> Vec<u8> {
        self.partial.extend_from_slice(chunk);
        let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let rest = self.partial.split_off(end + 1);
        let whole = std::mem::replace(&mut self.partial, rest);
        clean(&whole)
    }

    fn rest(&mut self) -> Vec<u8> {
        clean(&std::mem::take(&mut self.partial))
    }
}

fn clean(bytes: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.split_inclusive('\n').filter(|line| line.trim() != HEARTBEAT);
    let kept: String = lines.flat_map(str::chars).filter(|c| matches!(c, '\n' | '\t') || !c.is_control()).collect();
    kept.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_and_escapes_are_dropped_across_chunks() {
        let mut filter = LineFilter::default();

        let mut out = filter.take(b"one\r\n[vmm heart");
        out.extend(filter.take(b"beat]\ntw\x1bo\nthr"));
        out.extend(filter.rest());

        assert_eq!(String::from_utf8_lossy(&out), "one\ntwo\nthr");
    }
}
