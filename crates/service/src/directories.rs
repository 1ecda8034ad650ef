//! Where a user's files go (XDG Base Directory Specification).

use std::path::PathBuf;

/// `$XDG_CACHE_HOME/dstack`, or `~/.cache/dstack`; `None` if neither variable is set. May be deleted at any time.
#[must_use]
pub fn cache() -> Option<PathBuf> {
    in_home("XDG_CACHE_HOME", ".cache")
}

/// `$XDG_STATE_HOME/dstack`, or `~/.local/state/dstack`; `None` if neither variable is set.
#[must_use]
pub fn state() -> Option<PathBuf> {
    in_home("XDG_STATE_HOME", ".local/state")
}

fn in_home(variable: &str, default: &str) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    Some(set(variable).or_else(|| Some(set("HOME")?.join(default)))?.join("dstack"))
}
