//! Where programs are.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::failure::{Failure, Outcome};

/// Looks up `name` in `$DSTACK_BIN_DIR`, beside this program, and in `$PATH`.
///
/// Errors: not found, with what provides it.
pub(super) fn find(name: &str) -> Outcome<PathBuf> {
    let bin_dir = std::env::var_os("DSTACK_BIN_DIR").map(PathBuf::from);
    let own = std::env::current_exe().ok().and_then(|exe| exe.canonicalize().ok()).and_then(|exe| exe.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default();
    let tools = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/dstack/tools/bin"));
    let folders = bin_dir.into_iter().chain(own).chain(path).chain(tools);
    folders.map(|folder| folder.join(name)).find(|file| is_program(file)).ok_or_else(|| missing(name))
}

fn is_program(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn missing(name: &str) -> Failure {
    let fix = match name {
        "qemu-system-x86_64" => "install Debian's qemu-system-x86 (10.0 or newer; on Debian 12 from bookworm-backports)".to_owned(),
        "vhost-device-vsock" => "run `cargo install --locked --root ~/.cache/dstack/tools --version 0.3.0 vhost-device-vsock`".to_owned(),
        _ => "run `make build`, or set DSTACK_BIN_DIR to the folder with the dstack programs".to_owned(),
    };
    Failure::new("stack/program-missing", format!("{name} is not in DSTACK_BIN_DIR, beside dstack, or in PATH"), fix)
}
