//! Running other programs: one description, one runner that really runs them and one trait so that tests need not.

use std::{
    fmt,
    io::{self, Read, Write as _},
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Most output kept of one program.
const MAX_OUTPUT_BYTES: u64 = 256 << 10;

/// A program with its arguments and limits.
#[derive(Clone, PartialEq, Eq)]
pub struct Invocation {
    /// Program: a path or a name to look up.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Additional environment.
    pub env: Vec<(String, String)>,
    /// Bytes for its standard input. Not shown in logs.
    pub stdin: Vec<u8>,
    /// Killed after this long.
    pub patience: Duration,
    /// Working directory, if not ours.
    pub directory: Option<PathBuf>,
}

impl Invocation {
    /// A program without input, killed after a minute.
    #[must_use]
    pub fn new(program: &str, args: &[&str]) -> Self {
        Self {
            program: program.to_owned(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            env: Vec::new(),
            stdin: Vec::new(),
            patience: Duration::from_secs(60),
            directory: None,
        }
    }

    /// With one more environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With standard input.
    #[must_use]
    pub fn stdin(mut self, bytes: Vec<u8>) -> Self {
        self.stdin = bytes;
        self
    }

    /// With another time limit.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

impl fmt::Debug for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.program, self.args.join(" "))
    }
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// It could not be started or talked to.
    #[error("run {program}")]
    Start {
        /// The program.
        program: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It ended with an error.
    #[error("{program} ended with {status}: {output}")]
    Failed {
        /// The program.
        program: String,
        /// Exit code or signal, in words.
        status: String,
        /// The end of what it wrote to standard error.
        output: String,
        /// Exit code, if it exited.
        code: Option<i32>,
    },
    /// It took too long and was killed.
    #[error("{program} was still running after {patience:?}")]
    TimedOut {
        /// The program.
        program: String,
        /// How long it was waited for.
        patience: Duration,
    },
}

/// Runs programs.
pub trait Runner: Send + Sync {
    /// Runs to the end; returns standard output.
    ///
    /// Errors: it cannot be started, fails, or takes too long.
    fn run(&self, invocation: &Invocation) -> Result<Vec<u8>, CommandError>;
}

/// Runs them for real.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRunner;

impl Runner for SystemRunner {
    fn run(&self, invocation: &Invocation) -> Result<Vec<u8>, CommandError> {
        let start = |source| CommandError::Start { program: invocation.program.clone(), source };
        let mut command = Command::new(&invocation.program);
        if let Some(directory) = &invocation.directory {
            command.current_dir(directory);
        }
        let mut child = command
            .args(&invocation.args)
            .envs(invocation.env.iter().map(|(name, value)| (name, value)))
            .stdin(if invocation.stdin.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(start)?;
        let stdout = child.stdout.take().map(drain);
        let stderr = child.stderr.take().map(drain);
        let input = child.stdin.take().map(|mut pipe| {
            let bytes = zeroize::Zeroizing::new(invocation.stdin.clone());
            // A program that ends without reading its input says why by its exit status.
            thread::spawn(move || drop(pipe.write_all(&bytes)))
        });
        let status = wait(&mut child, invocation)?;
        if let Some(writer) = input {
            let _ = writer.join();
        }
        let stdout = stdout.and_then(|reader| reader.join().ok()).unwrap_or_default();
        let stderr = stderr.and_then(|reader| reader.join().ok()).unwrap_or_default();
        if status.success() {
            return Ok(stdout);
        }
        Err(CommandError::Failed {
            program: invocation.program.clone(),
            status: status.to_string(),
            output: tail(&stderr),
            code: status.code(),
        })
    }
}

/// Reads a pipe to its end, keeping a bounded part, so that the writer never blocks.
fn drain(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut kept = Vec::new();
        let _ = pipe.by_ref().take(MAX_OUTPUT_BYTES).read_to_end(&mut kept);
        let _ = io::copy(&mut pipe, &mut io::sink());
        kept
    })
}

fn wait(child: &mut std::process::Child, invocation: &Invocation) -> Result<std::process::ExitStatus, CommandError> {
    let deadline = Instant::now() + invocation.patience;
    let mut pause = Duration::from_millis(1);
    loop {
        let start = |source| CommandError::Start { program: invocation.program.clone(), source };
        if let Some(status) = child.try_wait().map_err(start)? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            if let Ok(pid) = i32::try_from(child.id()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = child.wait();
            return Err(CommandError::TimedOut { program: invocation.program.clone(), patience: invocation.patience });
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = crate::console::printable(&text);
    let skip = text.chars().count().saturating_sub(600);
    text.chars().skip(skip).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    #[test]
    fn passes_input_and_returns_output() {
        let output = SystemRunner.run(&Invocation::new("cat", &[]).stdin(b"secret".to_vec())).unwrap();

        assert_eq!(output, b"secret");
    }

    #[test]
    fn a_failure_carries_the_code_and_what_was_said() {
        let error = SystemRunner.run(&Invocation::new("sh", &["-c", "echo bad >&2; exit 3"])).unwrap_err();

        assert!(matches!(&error, CommandError::Failed { code: Some(3), output, .. } if output == "bad"), "{error}");
    }

    #[test]
    fn a_program_that_hangs_is_killed() {
        let error = SystemRunner.run(&Invocation::new("sleep", &["1000"]).patience(Duration::from_millis(20))).unwrap_err();

        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
    }

    #[test]
    fn input_is_not_shown() {
        let shown = format!("{:?}", Invocation::new("cryptsetup", &["open"]).stdin(b"hunter2".to_vec()));

        assert_eq!(shown, "cryptsetup open");
    }
}
