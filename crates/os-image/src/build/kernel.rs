//! Kernel and modules: unpacked once, then picked by name with what they depend on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::BuildError;
use crate::tools::{self, Toolbox};

/// Files beside the modules that programs read.
const INDEXES: [&str; 3] = ["modules.builtin", "modules.builtin.modinfo", "modules.order"];
/// Indexes that nobody needs at run time.
const UNUSED: [&str; 4] = ["modules.symbols", "modules.symbols.bin", "modules.devname", "modules.weakdep"];
const XZ_BATCH: usize = 64;

/// An unpacked kernel with all its modules, not compressed.
pub(super) struct Kernel {
    modules_dir: PathBuf,
    release: String,
    /// By name: path below the modules folder, and the dependencies, nearest first.
    modules: BTreeMap<String, (String, Vec<String>)>,
    builtin: BTreeSet<String>,
}

/// Unpacks the kernel packages into `target` and makes its module index.
pub(super) fn unpack(packages: &[PathBuf], target: &Path, tools: &Toolbox) -> Result<(), BuildError> {
    fs::create_dir_all(target).map_err(BuildError::io("create", target))?;
    for package in packages {
        tools::run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(target))?;
    }
    let (modules_dir, release) = find_release(target)?;
    let mut compressed = Vec::new();
    collect_compressed(&modules_dir, &mut compressed)?;
    for batch in compressed.chunks(XZ_BATCH) {
        tools::run(tools.command("xz").arg("--decompress").args(batch))?;
    }
    depmod(target, &release, tools)
}

impl Kernel {
    /// Reads what [`unpack`] made.
    pub(super) fn open(dir: &Path) -> Result<Self, BuildError> {
        let (modules_dir, release) = find_release(dir)?;
        let read = |name: &str| {
            let path = modules_dir.join(name);
            fs::read_to_string(&path).map_err(BuildError::io("read", &path))
        };
        let builtin = read("modules.builtin")?.lines().map(module_name).collect();
        let modules = read("modules.dep")?
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(file, rest)| (module_name(file), (file.to_owned(), rest.split_ascii_whitespace().map(str::to_owned).collect())))
            .collect();
        Ok(Self { modules_dir, release, modules, builtin })
    }

    /// The kernel image.
    pub(super) fn image(&self) -> PathBuf {
        self.modules_dir.join("vmlinuz")
    }

    /// Where a module of [`Self::closure`] is.
    pub(super) fn module(&self, file: &str) -> PathBuf {
        self.modules_dir.join(file)
    }

    /// Modules with all they depend on, each after its dependencies, paths below the modules folder. Built-in ones need no file.
    pub(super) fn closure(&self, names: &[String]) -> Result<Vec<String>, BuildError> {
        let mut files = Vec::new();
        for name in names {
            let key = module_name(name);
            match self.modules.get(&key) {
                Some((file, dependencies)) => {
                    for file in dependencies.iter().rev().chain([file]) {
                        if !files.contains(file) {
                            files.push(file.clone());
                        }
                    }
                }
                None if self.builtin.contains(&key) => {}
                None => return Err(BuildError::NotInPackages { what: format!("kernel module {name}") }),
            }
        }
        Ok(files)
    }

    /// Puts the modules into the tree `root` and makes their index.
    pub(super) fn install(&self, names: &[String], root: &Path, tools: &Toolbox) -> Result<(), BuildError> {
        let target = root.join("usr/lib/modules").join(&self.release);
        let files = self.closure(names)?;
        for file in files.iter().map(String::as_str).chain(INDEXES) {
            let (source, path) = (self.modules_dir.join(file), target.join(file));
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(BuildError::io("create", parent))?;
            }
            fs::copy(&source, &path).map_err(BuildError::io("write", &path))?;
        }
        depmod(root, &self.release, tools)?;
        for name in UNUSED {
            let _ = fs::remove_file(target.join(name));
        }
        Ok(())
    }
}

fn depmod(root: &Path, release: &str, tools: &Toolbox) -> Result<(), BuildError> {
    // Kernel packages install below /usr only; depmod looks below /lib.
    let link = root.join("lib");
    if !link.exists() {
        std::os::unix::fs::symlink("usr/lib", &link).map_err(BuildError::io("create", &link))?;
    }
    tools::run(tools.command("depmod").arg("--basedir").arg(root).arg(release))?;
    Ok(())
}

fn find_release(dir: &Path) -> Result<(PathBuf, String), BuildError> {
    let modules = dir.join("usr/lib/modules");
    let entry = fs::read_dir(&modules).ok().and_then(|mut entries| entries.next()).and_then(Result::ok);
    let entry = entry.ok_or_else(|| BuildError::NotInPackages { what: "a kernel with modules".to_owned() })?;
    Ok((entry.path(), entry.file_name().to_string_lossy().into_owned()))
}

fn collect_compressed(dir: &Path, found: &mut Vec<PathBuf>) -> Result<(), BuildError> {
    for entry in fs::read_dir(dir).map_err(BuildError::io("read", dir))? {
        let path = entry.map_err(BuildError::io("read", dir))?.path();
        if path.is_dir() {
            collect_compressed(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "xz") {
            found.push(path);
        }
    }
    Ok(())
}

fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split(".ko").next().unwrap_or(base).replace('-', "_")
}
