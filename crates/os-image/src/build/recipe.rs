//! `os/dstack-os.toml`: what an image is made of.

use std::{fs, path::Path};

use serde::Deserialize;

use super::{BuildError, Flavor, RECIPE_NAME};

/// The recipe. Everything a person may want to change about the OS is here, not in code.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Where packages come from.
    pub archive: ArchiveRecipe,
    /// Packages by role.
    pub packages: PackageRecipe,
    /// The root file system.
    pub rootfs: RootfsRecipe,
    /// The kernel.
    pub kernel: KernelRecipe,
    /// The initrd.
    pub initrd: InitrdRecipe,
}

/// Debian releases and archives.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchiveRecipe {
    /// Release, such as `trixie`. Its updates, security and backports suites are used as well.
    pub release: String,
    /// Mirror of the Debian archive; without it, the one of this host's apt.
    #[serde(default)]
    pub mirror: Option<String>,
    /// Mirror of the security archive; without it, the one of this host's apt.
    #[serde(default)]
    pub security_mirror: Option<String>,
    /// Archive of all past states, `{archive}` and `{time}` are filled in.
    pub snapshot: String,
    /// Keyring that signs the release.
    pub keyring: String,
}

/// Packages by role.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackageRecipe {
    /// Installed in both flavours, with what they depend on.
    pub base: Vec<String>,
    /// Installed in development images besides.
    #[serde(default)]
    pub development: Vec<String>,
    /// Kernel package, taken from backports.
    pub kernel: String,
    /// Which of the packages that the kernel depends on are unpacked (prefixes of names).
    pub kernel_parts: Vec<String>,
    /// Package with the firmware.
    pub firmware: String,
    /// File of that package.
    pub firmware_file: String,
    /// Packages with the tools of the build.
    pub tools: Vec<String>,
}

/// The root file system.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootfsRecipe {
    /// Options of `mkfs.erofs`.
    pub erofs_options: Vec<String>,
    /// Paths left out: globs where `*` stays in a component and `**` does not.
    pub drop: Vec<String>,
    /// Paths kept although `drop` names them.
    #[serde(default)]
    pub keep: Vec<String>,
    /// Empty directories, mostly mount points.
    pub directories: Vec<String>,
    /// Text files: path and content. `{version}`, `{flavor}` are filled in.
    #[serde(default)]
    pub files: Vec<FileRecipe>,
    /// Symbolic links: path and target.
    #[serde(default)]
    pub links: Vec<LinkRecipe>,
}

/// A text file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecipe {
    /// Where, absolute.
    pub path: String,
    /// What.
    pub content: String,
    /// Executable.
    #[serde(default)]
    pub executable: bool,
}

/// A symbolic link.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkRecipe {
    /// Where, absolute.
    pub path: String,
    /// What it points to.
    pub target: String,
}

/// The kernel.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelRecipe {
    /// Command line, without the root hash.
    pub cmdline: Vec<String>,
    /// Modules of the root file system, with what they depend on.
    pub modules: Vec<String>,
}

/// The initrd.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitrdRecipe {
    /// Modules to load, in this order, each after what it depends on. Those built in are skipped.
    pub modules: Vec<String>,
    /// Programs copied from the root file system, with their libraries.
    pub programs: Vec<String>,
}

impl Recipe {
    /// Reads the recipe in `dir`. Returns it with its text.
    ///
    /// # Errors
    /// [`BuildError::Io`], [`BuildError::Malformed`].
    pub fn load(dir: &Path) -> Result<(Self, String), BuildError> {
        let path = dir.join(RECIPE_NAME);
        let text = fs::read_to_string(&path).map_err(BuildError::io("read", &path))?;
        let recipe = toml::from_str(&text).map_err(|error| BuildError::Malformed { path, reason: error.to_string() })?;
        Ok((recipe, text))
    }

    /// Packages to install for `flavor`, without those they depend on.
    #[must_use]
    pub fn installed(&self, flavor: Flavor) -> Vec<&str> {
        let extra = if flavor == Flavor::Development { self.packages.development.as_slice() } else { &[] };
        self.packages.base.iter().chain(extra).map(String::as_str).collect()
    }
}
