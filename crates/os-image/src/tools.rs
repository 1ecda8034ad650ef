//! Programs that others wrote: `mkfs.erofs`, `depmod`, `apt-get` and so on.
//!
//! They come from the host, or from a tree of pinned packages, so that the same lock gives the same bytes on any host.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use dstack_api::UserFacing;

/// Lines of a failed program's output that an error carries.
const KEPT_LINES: usize = 12;

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// It is not installed.
    #[error("{program} is not installed")]
    Missing {
        /// The program.
        program: String,
        /// Debian package that has it.
        package: &'static str,
    },
    /// It is too old.
    #[error("{program} of this machine cannot {what}")]
    TooOld {
        /// The program.
        program: &'static str,
        /// What it has to be able to do.
        what: &'static str,
        /// Package and version that can.
        needs: &'static str,
    },
    /// It cannot be started.
    #[error("start {program}")]
    Start {
        /// The program.
        program: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It reported a failure.
    #[error("{program} ended with {status}: {output}")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: String,
        /// Its last lines.
        output: String,
    },
}

impl UserFacing for ToolError {
    fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "tool/missing",
            Self::TooOld { .. } => "tool/too-old",
            Self::Start { .. } => "tool/not-started",
            Self::Failed { .. } => "tool/failed",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Missing { package, .. } => format!("install it: apt-get install {package}"),
            Self::TooOld { needs, .. } => format!("install {needs}, or run `dstack os build` once: its tools are used then"),
            Self::Start { program, .. } => format!("check that this user may run {program}"),
            Self::Failed { .. } => "read the program's output above; check free disk space and the network, then try again".to_owned(),
        }
    }
}

/// Where programs are taken from.
#[derive(Debug, Clone)]
pub struct Toolbox {
    root: Option<PathBuf>,
}

impl Toolbox {
    /// Programs of this machine, found on `PATH`.
    #[must_use]
    pub fn host() -> Self {
        Self { root: None }
    }

    /// Programs of a tree of unpacked Debian packages, run with that tree's own libraries.
    #[must_use]
    pub fn pinned(root: impl Into<PathBuf>) -> Self {
        Self { root: Some(root.into()) }
    }

    /// Programs that can make volumes: this machine's, or where its `mkfs.erofs` does not read tar archives those that `dstack os build`
    /// keeps in its cache. `build_cache`: that cache's folder.
    ///
    /// # Errors
    /// [`ToolError::TooOld`] if neither can.
    pub fn for_volumes(build_cache: &Path) -> Result<Self, ToolError> {
        let trees = std::fs::read_dir(build_cache.join("tools")).into_iter().flatten().flatten();
        let mut pinned: Vec<PathBuf> = trees.map(|tree| tree.path()).filter(|tree| tree.join("usr/bin/mkfs.erofs").exists()).collect();
        pinned.sort();
        let candidates = std::iter::once(Self::host()).chain(pinned.into_iter().map(Self::pinned));
        let able = |tools: &Self| {
            let help = tools.command("mkfs.erofs").arg("--help").stdin(Stdio::null()).output();
            help.is_ok_and(|help| String::from_utf8_lossy(&[help.stdout, help.stderr].concat()).contains("--tar="))
        };
        let needs = "erofs-utils 1.7 or newer (Debian 13 has it)";
        candidates.into_iter().find(able).ok_or(ToolError::TooOld { program: "mkfs.erofs", what: "read tar archives", needs })
    }

    /// A command for `program`, such as `mkfs.erofs`.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = match &self.root {
            None => Command::new(program),
            Some(root) => {
                let mut command = loader(root);
                command.arg(find(root, program));
                command
            }
        };
        command.env("LC_ALL", "C.UTF-8").env("TZ", "UTC").env_remove("SOURCE_DATE_EPOCH");
        command
    }
}

/// The dynamic loader of an unpacked Debian tree, told to use that tree's libraries only.
#[must_use]
pub fn loader(root: &Path) -> Command {
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
    command.arg("--inhibit-cache").arg("--library-path").arg(libraries);
    command
}

fn find(root: &Path, program: &str) -> PathBuf {
    let candidates = ["usr/bin", "usr/sbin", "bin", "sbin"].map(|dir| root.join(dir).join(program));
    candidates.iter().find(|path| path.exists()).unwrap_or(&candidates[0]).clone()
}

/// Runs to the end and returns standard output.
///
/// # Errors
/// [`ToolError`]; a failure carries the last lines that the program wrote.
pub fn run(command: &mut Command) -> Result<Vec<u8>, ToolError> {
    let output = command.stdin(Stdio::null()).output().map_err(|source| start_error(command, source))?;
    check(command, output)
}

/// The error of a command that could not be started.
pub(crate) fn start_error(command: &Command, source: io::Error) -> ToolError {
    let program = display_name(command);
    if source.kind() == io::ErrorKind::NotFound {
        return ToolError::Missing { package: package_of(&program), program };
    }
    ToolError::Start { program, source }
}

/// Standard output of a program that ended well.
pub(crate) fn check(command: &Command, output: Output) -> Result<Vec<u8>, ToolError> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(if output.stderr.is_empty() { &output.stdout } else { &output.stderr });
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let kept = lines.get(lines.len().saturating_sub(KEPT_LINES)..).unwrap_or_default();
    Err(ToolError::Failed { program: display_name(command), status: output.status.to_string(), output: kept.join(" | ") })
}

fn display_name(command: &Command) -> String {
    let is_loader = Path::new(command.get_program()).file_name() == Some(OsStr::new("ld-linux-x86-64.so.2"));
    let program = if is_loader { command.get_args().nth(3).unwrap_or(command.get_program()) } else { command.get_program() };
    Path::new(program).file_name().unwrap_or(program).to_string_lossy().into_owned()
}

fn package_of(program: &str) -> &'static str {
    match program {
        "mkfs.erofs" => "erofs-utils",
        "mmdebstrap" => "mmdebstrap",
        "depmod" => "kmod",
        "dpkg-deb" => "dpkg",
        "xz" => "xz-utils",
        _ => "apt",
    }
}
