//! Where a test builds images: folders of its own, and the caches that `dstack os build` fills, so that nothing is downloaded twice.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::print_stderr, reason = "tests; each file uses a part")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use dstack_os_image::build::{BuildOptions, Flavor, GuestPrograms};

pub fn os_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../os")
}

/// A step's folder in the cache of `dstack os build`.
pub fn shared_cache(step: &str) -> PathBuf {
    let base =
        std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    base.unwrap_or_else(std::env::temp_dir).join("dstack/os").join(step)
}

/// Options whose store and cache are below `root`; the named steps of the cache are the shared ones.
pub fn options(root: &Path, flavor: Flavor, shared: &[&str]) -> BuildOptions {
    let cache = root.join("cache");
    fs::create_dir_all(&cache).unwrap();
    for step in shared {
        fs::create_dir_all(shared_cache(step)).unwrap();
        symlink(shared_cache(step), cache.join(step)).unwrap();
    }
    BuildOptions {
        recipe_dir: os_dir(),
        store: root.join("store"),
        cache,
        flavor,
        version: "0.0.1".to_owned(),
        git_revision: String::new(),
        // Any program of this machine will do: what is tested is the image around it.
        guest: GuestPrograms { init: PathBuf::from("/bin/true"), agent: PathBuf::from("/bin/true") },
        mirrors: None,
        force: false,
    }
}

pub fn can_build() -> bool {
    let can = Command::new("mmdebstrap").arg("--version").output().is_ok_and(|output| output.status.success());
    if !can {
        eprintln!("not run: mmdebstrap is not installed (apt-get install mmdebstrap)");
    }
    can
}
