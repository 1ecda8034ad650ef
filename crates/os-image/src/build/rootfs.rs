//! The root file system: base tree, modules and our programs, as erofs with its hash tree.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use dstack_manifest::Digest32;

use super::{BuildError, BuildOptions, Recipe, kernel::Kernel};
use crate::{
    tools::{self, Toolbox},
    verity::{self, BLOCK_BYTES},
};

/// Where our programs are.
const PROGRAMS: &str = "usr/lib/dstack";

/// Puts the tree together in `tree`, which must not exist. Files of `base` are linked, not copied.
pub(super) fn assemble(
    options: &BuildOptions,
    recipe: &Recipe,
    base: &Path,
    kernel: &Kernel,
    tools: &Toolbox,
    tree: &Path,
) -> Result<(), BuildError> {
    link_tree(base, tree).map_err(BuildError::io("copy the base tree to", tree))?;
    kernel.install(&recipe.kernel.modules, tree, tools)?;
    let rootfs = &recipe.rootfs;
    for directory in &rootfs.directories {
        let path = inside(tree, directory);
        fs::create_dir_all(&path).map_err(BuildError::io("create", &path))?;
    }
    for file in &rootfs.files {
        let content = file.content.replace("{version}", &options.version).replace("{flavor}", options.flavor.as_str());
        write(&inside(tree, &file.path), content.as_bytes(), file.executable)?;
    }
    for (name, source) in [("dstack-init", &options.guest.init), ("dstack-guest-agent", &options.guest.agent)] {
        let program = fs::read(source).map_err(BuildError::io("read", source))?;
        write(&tree.join(PROGRAMS).join(name), &program, true)?;
    }
    write(&tree.join(PROGRAMS).join("flavor"), format!("{}\n", options.flavor.as_str()).as_bytes(), false)?;
    for link in &rootfs.links {
        let path = inside(tree, &link.path);
        make_parent(&path)?;
        let _ = fs::remove_file(&path);
        symlink(&link.target, &path).map_err(BuildError::io("create", &path))?;
    }
    Ok(())
}

/// Packs `tree` into `image`. Returns the size of the data.
pub(super) fn pack(recipe: &Recipe, tree: &Path, time: u64, tools: &Toolbox, image: &Path) -> Result<u64, BuildError> {
    let mut command = tools.command("mkfs.erofs");
    command.args(&recipe.rootfs.erofs_options).arg(format!("-T{time}"));
    command.args(["-U00000000-0000-0000-0000-000000000000", "--all-root", "--hard-dereference", "-x-1", "--quiet"]);
    tools::run(command.arg(image).arg(tree))?;
    let file = File::options().write(true).open(image).map_err(BuildError::io("open", image))?;
    let data_bytes = file.metadata().map_err(BuildError::io("read", image))?.len().next_multiple_of(BLOCK_BYTES as u64);
    file.set_len(data_bytes).map_err(BuildError::io("write", image))?;
    Ok(data_bytes)
}

/// Appends the hash tree. Returns the root hash.
pub(super) fn seal(image: &Path, data_bytes: u64) -> Result<Digest32, BuildError> {
    let mut file = File::options().read(true).write(true).open(image).map_err(BuildError::io("open", image))?;
    Ok(verity::append(&mut file, data_bytes)?)
}

fn inside(tree: &Path, path: &str) -> std::path::PathBuf {
    tree.join(path.trim_start_matches('/'))
}

/// Replaces the file: what is there may be a link into the cached base tree.
fn write(path: &Path, content: &[u8], executable: bool) -> Result<(), BuildError> {
    make_parent(path)?;
    let _ = fs::remove_file(path);
    fs::write(path, content).map_err(BuildError::io("write", path))?;
    let mode = if executable { 0o755 } else { 0o644 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(BuildError::io("write", path))
}

fn make_parent(path: &Path) -> Result<(), BuildError> {
    path.parent().map_or(Ok(()), |parent| fs::create_dir_all(parent).map_err(BuildError::io("create", parent)))
}

fn link_tree(source: &Path, target: &Path) -> io::Result<()> {
    fs::create_dir(target)?;
    for entry in fs::read_dir(source)? {
        let entry = entry?;
        let (from, to) = (entry.path(), target.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            link_tree(&from, &to)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
        } else {
            fs::hard_link(&from, &to)?;
        }
    }
    fs::set_permissions(target, fs::metadata(source)?.permissions())
}
