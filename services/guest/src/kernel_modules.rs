//! Loads kernel modules without `modprobe`: a list of paths in the initrd, names with dependencies in the root.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
};

/// Why a module was not loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// A file cannot be read.
    #[error("{}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel refused it.
    #[error("load module {}", path.display())]
    Load {
        /// The module's file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Errno,
    },
    /// `modules.dep` does not name it.
    #[error("kernel module {name} is not part of this image")]
    Unknown {
        /// The module's name.
        name: String,
    },
}

/// Loads one file. A module that is loaded or built in counts as success.
///
/// Errors: the file cannot be read or the kernel refuses it.
pub fn load_file(path: &Path) -> Result<(), ModuleError> {
    let file = fs::File::open(path).map_err(|source| ModuleError::Read { path: path.to_owned(), source })?;
    let is_compressed = path.extension().is_some_and(|extension| extension != "ko");
    // MODULE_INIT_COMPRESSED_FILE of linux/module.h; nix has no name for it.
    let flags = if is_compressed { ModuleInitFlags::from_bits_retain(4) } else { ModuleInitFlags::empty() };
    match finit_module(&file, &CString::default(), flags) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(source) => Err(ModuleError::Load { path: path.to_owned(), source }),
    }
}

/// Loads the files that `list` names, one absolute path per line, in that order.
///
/// Errors: the first one that fails.
pub fn load_list(list: &Path) -> Result<(), ModuleError> {
    let text = fs::read_to_string(list).map_err(|source| ModuleError::Read { path: list.to_owned(), source })?;
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).try_for_each(|line| load_file(Path::new(line)))
}

/// The modules of the running kernel, from `modules.dep`.
#[derive(Debug, Default)]
pub struct ModuleTree {
    base: PathBuf,
    files: BTreeMap<String, Vec<PathBuf>>,
}

impl ModuleTree {
    /// Reads `modules.dep` below `base`, such as `/usr/lib/modules/7.2.0`.
    ///
    /// Errors: it cannot be read.
    pub fn open(base: &Path) -> Result<Self, ModuleError> {
        let path = base.join("modules.dep");
        let text = fs::read_to_string(&path).map_err(|source| ModuleError::Read { path, source })?;
        Ok(Self::parse(base, &text))
    }

    fn parse(base: &Path, text: &str) -> Self {
        let files = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(file, dependencies)| {
                // modules.dep lists the nearest dependency first; the farthest has to be loaded first.
                let chain = dependencies.split_ascii_whitespace().rev().chain([file]).map(PathBuf::from).collect();
                (module_name(file), chain)
            })
            .collect();
        Self { base: base.to_owned(), files }
    }

    /// The files to load for `name`, in order.
    ///
    /// Errors: the tree has no such module.
    pub fn chain(&self, name: &str) -> Result<Vec<PathBuf>, ModuleError> {
        let chain = self.files.get(&name.replace('-', "_")).ok_or_else(|| ModuleError::Unknown { name: name.to_owned() })?;
        Ok(chain.iter().map(|file| self.base.join(file)).collect())
    }

    /// Loads modules with what they depend on. Returns the problems; one module's failure does not stop the others.
    pub fn load(&self, names: &[&str]) -> Vec<ModuleError> {
        let mut done = BTreeSet::new();
        let mut problems = Vec::new();
        for name in names {
            match self.chain(name) {
                Err(error) => problems.push(error),
                Ok(chain) => {
                    for path in chain {
                        if !done.contains(&path) {
                            problems.extend(load_file(&path).err());
                            done.insert(path);
                        }
                    }
                }
            }
        }
        problems
    }
}

fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split(".ko").next().unwrap_or(base).replace('-', "_")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    const DEP: &str = "kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko.xz: kernel/net/vmw_vsock/vmw_vsock_virtio_transport_common.ko.xz kernel/net/vmw_vsock/vsock.ko.xz\n\
                       kernel/net/vmw_vsock/vsock.ko.xz:\nkernel/drivers/md/dm-crypt.ko.xz:\n";

    #[test]
    fn dependencies_come_first() {
        let tree = ModuleTree::parse(Path::new("/m"), DEP);

        let chain = tree.chain("vmw_vsock_virtio_transport").unwrap();

        assert_eq!(
            chain,
            [
                "/m/kernel/net/vmw_vsock/vsock.ko.xz",
                "/m/kernel/net/vmw_vsock/vmw_vsock_virtio_transport_common.ko.xz",
                "/m/kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko.xz"
            ]
            .map(PathBuf::from)
        );
    }

    #[test]
    fn dashes_and_underscores_are_the_same() {
        let tree = ModuleTree::parse(Path::new("/m"), DEP);

        assert_eq!(tree.chain("dm_crypt").unwrap(), tree.chain("dm-crypt").unwrap());
        assert!(matches!(tree.chain("nope"), Err(ModuleError::Unknown { name }) if name == "nope"));
    }
}
