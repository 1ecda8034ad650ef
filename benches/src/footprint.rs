//! Sizes on disk.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, ensure};
use dstack_e2e::Stack;

/// Bytes of a MiB.
const MIB: u64 = 1 << 20;
/// Stripped size of each service.
const BINARY_PROMISE: u64 = 20_000_000;
/// Root file system of the production flavour, as stored.
const ROOT_PROMISE: u64 = 260 * MIB;

pub(crate) fn run() -> anyhow::Result<()> {
    let directory = PathBuf::from(std::env::var_os("DSTACK_BIN_DIR").context("DSTACK_BIN_DIR is not set; use `make bench`")?);
    for name in ["dstack-kms", "dstack-vmm", "dstack-supervisor", "dstack-tee-simulator", "dstack"] {
        let bytes = fs::metadata(directory.join(name)).with_context(|| name.to_owned())?.len();
        println!("{name}: {:.1} MB", bytes as f64 / 1e6);
        ensure!(bytes <= BINARY_PROMISE, "{name} is larger than promised");
    }
    let stack = Stack::start();
    let images = stack.dstack(&["os", "list", "--json"]).must_succeed().json();
    let production = images.as_array().into_iter().flatten().find(|image| image["is_dev"] == false);
    let path = production.and_then(|image| image["path"].as_str()).context("no production image: dstack os build --flavor production")?;
    let root = fs::metadata(PathBuf::from(path).join("rootfs.img"))?.len();
    println!("production root: {:.1} MiB", root as f64 / MIB as f64);
    ensure!(root <= ROOT_PROMISE, "the production root is larger than promised");
    Ok(())
}
