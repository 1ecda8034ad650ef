//! The base tree: packages installed by mmdebstrap from a local repository that has nothing but the locked packages.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Component, Path, PathBuf},
    process::{Command, Stdio},
};

use super::{BuildError, LockedPackage, Recipe, pattern};
use crate::tools::{self, ToolError};

/// Times and counts of the packages' own logs must not matter: what is installed is a function of these.
pub(super) struct BaseRequest<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) installed: Vec<&'a str>,
    pub(super) packages: Vec<(&'a LockedPackage, PathBuf)>,
    pub(super) time: u64,
}

/// Installs into `target`, which must not exist.
pub(super) fn install(request: &BaseRequest<'_>, target: &Path) -> Result<(), BuildError> {
    let repository = target.with_extension("repository");
    let _ = fs::remove_dir_all(&repository);
    write_repository(&repository, &request.packages)?;
    let result = debootstrap(request, &repository, target);
    let _ = fs::remove_dir_all(&repository);
    result
}

fn write_repository(dir: &Path, packages: &[(&LockedPackage, PathBuf)]) -> Result<(), BuildError> {
    fs::create_dir_all(dir).map_err(BuildError::io("create", dir))?;
    let mut index = String::new();
    for (package, file) in packages {
        let name = format!("{}.deb", package.sha256);
        let link = dir.join(&name);
        fs::hard_link(file, &link).or_else(|_| fs::copy(file, &link).map(drop)).map_err(BuildError::io("write", &link))?;
        let control = tools::run(Command::new("dpkg-deb").arg("--field").arg(file))?;
        let control = String::from_utf8_lossy(&control);
        let _ = write!(index, "{}\nFilename: ./{name}\nSize: {}\nSHA256: {}\n\n", control.trim_end(), package.bytes, package.sha256);
    }
    let path = dir.join("Packages");
    fs::write(&path, index).map_err(BuildError::io("write", &path))
}

fn debootstrap(request: &BaseRequest<'_>, repository: &Path, target: &Path) -> Result<(), BuildError> {
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=essential", "--architectures=amd64", "--format=tar", "--quiet"]);
    command.arg(format!("--include={}", request.installed.join(",")));
    command.args(["--aptopt=APT::Install-Recommends \"false\"", "--aptopt=APT::Sandbox::User \"\""]);
    command.arg("").arg("-").arg(format!("deb [trusted=yes] copy:{} ./", repository.display()));
    command.env("SOURCE_DATE_EPOCH", request.time.to_string()).env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
    let log = tempfile::tempfile().map_err(BuildError::io("create a file in", &std::env::temp_dir()))?;
    let log_writer = log.try_clone().map_err(BuildError::io("create a file in", &std::env::temp_dir()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_writer)
        .spawn()
        .map_err(|source| BuildError::Tool(tools::start_error(&command, source)))?;
    let unpacked = match child.stdout.take() {
        Some(stream) => unpack(stream, target, &request.recipe.rootfs.drop, &request.recipe.rootfs.keep),
        None => Ok(()),
    };
    if unpacked.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().map_err(BuildError::io("wait for", Path::new("mmdebstrap")))?;
    unpacked.map_err(BuildError::io("unpack the base tree into", target))?;
    if status.success() {
        return Ok(());
    }
    Err(ToolError::Failed { program: "mmdebstrap".to_owned(), status: status.to_string(), output: tail(log) }.into())
}

fn tail(mut log: File) -> String {
    use std::io::Seek as _;
    let mut text = String::new();
    let _ = log.rewind().and_then(|()| log.read_to_string(&mut text));
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(12)..).unwrap_or_default().join(" | ")
}

/// Unpacks without owners, times, device nodes and set-id bits; leaves out what the recipe drops.
fn unpack(stream: impl io::Read, target: &Path, drop_patterns: &[String], keep_patterns: &[String]) -> io::Result<()> {
    fs::create_dir_all(target)?;
    let covered = |patterns: &[String], path: &str| patterns.iter().any(|glob| pattern::covers(glob, path));
    let mut archive = tar::Archive::new(io::BufReader::with_capacity(1 << 20, stream));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let relative: PathBuf = entry.path()?.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        let absolute = format!("/{}", relative.display());
        if relative.as_os_str().is_empty() || (covered(drop_patterns, &absolute) && !covered(keep_patterns, &absolute)) {
            continue;
        }
        let path = target.join(&relative);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mode = entry.header().mode()?;
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            fs::create_dir_all(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o1777 | 0o700))?;
        } else if kind.is_symlink() {
            symlink(entry.link_name()?.unwrap_or_default(), &path)?;
        } else if kind.is_hard_link() {
            let source: PathBuf =
                entry.link_name()?.unwrap_or_default().components().filter(|part| matches!(part, Component::Normal(_))).collect();
            // A link to something dropped is dropped as well.
            if target.join(&source).exists() {
                fs::hard_link(target.join(source), &path)?;
            }
        } else if kind.is_file() {
            io::copy(&mut entry, &mut File::create(&path)?)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o777 | 0o400))?;
        }
    }
    // mmdebstrap pads its archive; the rest of the stream has to be read or it fails.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(())
}
