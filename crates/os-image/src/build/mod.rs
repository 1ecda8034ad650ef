//! From a recipe and a lock file to an image directory.
//!
//! ```text
//! recipe + lock ─▶ packages (by SHA-256) ─▶ base tree (mmdebstrap, offline) ─┐
//!                        │                                                   ├▶ rootfs.img (erofs + verity) ─┐
//!                        ├▶ kernel, its modules ─────────────────────────────┤                               ├▶ image
//!                        ├▶ tools (mkfs.erofs, depmod, xz)   guest programs ─┴▶ initramfs.cpio ──────────────┤
//!                        └▶ firmware ───────────────────────────────────────────────────────────────────────┘
//! ```
//! Every box is cached under the digest of its inputs. Nothing but the packages comes from the network, and packages
//! are taken by hash. Times, owners and orders are fixed, so the same inputs give the same bytes.

mod archive;
mod base;
mod cpio;
mod error;
mod fetch;
mod initrd;
mod kernel;
mod lock;
mod packages;
mod pattern;
mod recipe;
mod resolve;
mod rootfs;
mod run;

use std::path::PathBuf;

pub use archive::{Archives, Mirrors};
pub use error::BuildError;
pub use lock::{Lock, LockedPackage, PackageSet};
pub use packages::Replaced;
pub use recipe::Recipe;
pub use run::{build, lock};

/// Name of the recipe in [`BuildOptions::recipe_dir`].
pub const RECIPE_NAME: &str = "dstack-os.toml";
/// Name of the lock file beside it.
pub const LOCK_NAME: &str = "dstack-os.lock";

/// For whom an image is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flavor {
    /// Only runs in a real TEE. Refuses to be built from other packages than the locked ones.
    Production,
    /// Also runs under the software TEE.
    Development,
}

impl Flavor {
    /// `production` or `development`, as in `/usr/lib/dstack/flavor`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Development => "development",
        }
    }

    /// Name of the image directory of `version`: `dstack-0.7.0` or `dstack-dev-0.7.0`.
    #[must_use]
    pub fn image_name(self, version: &str) -> String {
        match self {
            Self::Production => format!("dstack-{version}"),
            Self::Development => format!("dstack-dev-{version}"),
        }
    }
}

/// The programs of ours that go into the image, already built for the flavour.
#[derive(Debug, Clone)]
pub struct GuestPrograms {
    /// `dstack-init`.
    pub init: PathBuf,
    /// `dstack-guest-agent`.
    pub agent: PathBuf,
}

/// What to build and where.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Folder with [`RECIPE_NAME`], [`LOCK_NAME`] and the files the recipe names: `os/` of the repository.
    pub recipe_dir: PathBuf,
    /// Image store; the image directory is made in it.
    pub store: PathBuf,
    /// Cache, such as `~/.cache/dstack/os`; may be deleted at any time.
    pub cache: PathBuf,
    /// Flavour.
    pub flavor: Flavor,
    /// Release, such as `0.7.0`.
    pub version: String,
    /// Commit, for `metadata.json`. It is measured: another commit is another image, so leave it empty unless wanted.
    pub git_revision: String,
    /// Our programs.
    pub guest: GuestPrograms,
    /// Where packages come from; `None` takes the mirror that this host's apt uses.
    pub mirrors: Option<Mirrors>,
    /// Build even if an image of the same inputs is there.
    pub force: bool,
}

/// What to lock.
#[derive(Debug, Clone)]
pub struct LockOptions {
    /// Folder with the recipe; the lock file is written there.
    pub recipe_dir: PathBuf,
    /// Cache.
    pub cache: PathBuf,
    /// Where packages come from; `None` takes the mirror that this host's apt uses.
    pub mirrors: Option<Mirrors>,
    /// The time of the lock: names the state of the snapshot archive, and is the time stamp of every file.
    /// Unix seconds; comes from the caller's clock.
    pub now: u64,
}

/// A step of a build, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Phase {
    /// Reads recipe and lock, compares with the last build.
    Plan,
    /// Fetches packages that are not in the cache.
    Packages,
    /// Unpacks the tools of the build.
    Tools,
    /// Installs the base tree.
    Base,
    /// Unpacks kernel and modules.
    Kernel,
    /// Puts the root file system together and compresses it.
    RootFilesystem,
    /// Computes the hash tree.
    Verity,
    /// Makes the initrd.
    Initrd,
    /// Computes measurements and checksums.
    Measure,
}

impl Phase {
    /// One word for progress displays.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Packages => "packages",
            Self::Tools => "tools",
            Self::Base => "base",
            Self::Kernel => "kernel",
            Self::RootFilesystem => "rootfs",
            Self::Verity => "verity",
            Self::Initrd => "initrd",
            Self::Measure => "measure",
        }
    }
}

/// Told to the caller while a build runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// A step begins.
    Started(Phase),
    /// A step was answered from the cache.
    Reused(Phase),
    /// Bytes or items done out of a total.
    Advanced {
        /// The step.
        phase: Phase,
        /// Done so far.
        done: u64,
        /// To do in all.
        total: u64,
    },
    /// Something the user should know, such as packages that are not the locked ones.
    Note(String),
}

/// Receives [`Progress`].
pub type Reporter<'a> = dyn FnMut(Progress) + 'a;

/// What a build made.
#[derive(Debug, Clone)]
pub struct BuildReport {
    /// The image directory.
    pub image: crate::Image,
    /// Nothing was built: the store had an image of the same inputs.
    pub is_reused: bool,
    /// Packages used in place of locked ones; not empty only for an unlocked development image.
    pub replaced: Vec<Replaced>,
}

/// What [`lock()`] changed.
#[derive(Debug, Clone)]
pub struct LockReport {
    /// The lock file.
    pub path: PathBuf,
    /// Packages in it.
    pub packages: usize,
    /// Packages whose version is another one than before, or that are new.
    pub changed: Vec<Replaced>,
}
