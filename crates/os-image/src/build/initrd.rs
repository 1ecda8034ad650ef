//! The initrd: `dstack-init`, `veritysetup`, their libraries, and the modules that reach the root.

use std::{fs, path::Path};

use super::{BuildError, Recipe, cpio::Cpio, kernel::Kernel};
use crate::tools;

const LOADER: &str = "/usr/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";
const DIRECTORIES: [&str; 8] = ["/dev", "/etc", "/proc", "/run", "/sys", "/sysroot", "/tmp", "/usr/sbin"];

/// Makes the archive. `root`: the tree that programs and libraries are taken from; `init`: our first program.
pub(super) fn make(recipe: &Recipe, root: &Path, kernel: &Kernel, init: &Path) -> Result<Vec<u8>, BuildError> {
    let mut archive = Cpio::default();
    for path in DIRECTORIES {
        archive.directory(path);
    }
    for (path, target) in [("/bin", "usr/bin"), ("/lib", "usr/lib"), ("/lib64", "usr/lib64"), ("/sbin", "usr/sbin")] {
        archive.link(path, target);
    }
    archive.directory("/usr/bin");
    archive.file("/etc/initrd-release", b"ID=dstack\n".to_vec(), false);
    archive.file(LOADER, read(&root.join("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"))?, true);
    archive.file("/init", read(init)?, true);
    add_libraries(&mut archive, root, init)?;
    for program in &recipe.initrd.programs {
        let source = root.join(program.trim_start_matches('/'));
        archive.file(program, read(&source)?, true);
        add_libraries(&mut archive, root, &source)?;
    }
    let mut list = String::new();
    for file in kernel.closure(&recipe.initrd.modules)? {
        let name = file.rsplit('/').next().unwrap_or(&file);
        let path = format!("/modules/{name}");
        archive.file(&path, read(&kernel.module(&file))?, false);
        list.push_str(&path);
        list.push('\n');
    }
    archive.file("/modules.load", list.into_bytes(), false);
    Ok(archive.into_bytes())
}

/// Adds every library that `program` loads, as the tree's own loader finds it.
fn add_libraries(archive: &mut Cpio, root: &Path, program: &Path) -> Result<(), BuildError> {
    let listing = tools::run(tools::loader(root).arg("--list").arg(program))?;
    for line in String::from_utf8_lossy(&listing).lines() {
        let Some((name, rest)) = line.trim().split_once(" => ") else { continue };
        let source = rest.split(" (").next().unwrap_or_default();
        if source == "not found" {
            return Err(BuildError::NotInPackages { what: format!("library {name}, needed by {}", program.display()) });
        }
        let path = format!("{LIBRARIES}/{name}");
        if !name.starts_with('/') && !archive.contains(&path) {
            archive.file(&path, read(Path::new(source))?, true);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    fs::read(path).map_err(BuildError::io("read", path))
}
