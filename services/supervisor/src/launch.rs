//! Starting a program so that it outlives us.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
};

use dstack_api::supervisor::ProcessConfig;
use dstack_service::log_file::Rotation;

use crate::identity::MARKER;

/// Starts the program in its own process group, without our environment, output appended to its files.
///
/// Returns the pid of a child that nobody has waited for yet. Errors: a file or the program cannot be opened.
pub(crate) fn launch(config: &ProcessConfig, token: &str, rotation: &Rotation) -> io::Result<u32> {
    let cwd = if config.cwd.is_empty() { "/" } else { &config.cwd };
    let child = Command::new(&config.command)
        .args(&config.args)
        .env_clear()
        .envs(&config.env)
        .env(MARKER, token)
        .current_dir(cwd)
        .stdin(Stdio::null())
        .stdout(output(&config.stdout, rotation)?)
        .stderr(output(&config.stderr, rotation)?)
        .process_group(0)
        .spawn()
        .map_err(|error| if Path::new(cwd).is_dir() { error } else { io::Error::new(error.kind(), format!("{cwd}: {error}")) })?;
    if !config.pidfile.is_empty() {
        dstack_service::fs::write_atomic(&config.pidfile, format!("{}\n", child.id()).as_bytes(), 0o644)?;
    }
    Ok(child.id())
}

fn output(path: &str, rotation: &Rotation) -> io::Result<Stdio> {
    if path.is_empty() {
        return Ok(Stdio::null());
    }
    rotation.apply(Path::new(path))?;
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
    let mut file = File::options().create(true).append(true).mode(0o600).open(path).map_err(named)?;
    file.flush()?;
    Ok(file.into())
}
