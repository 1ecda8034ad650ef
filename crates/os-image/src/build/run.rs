//! The order of the steps, and what is reused.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
};

use dstack_manifest::ImageMetadata;
use dstack_measurement::{
    checksum::{TDX_DOCUMENT_NAME, binding_line, os_image_hash},
    tdx::{ImageFiles, ImageMeasurement, identify_ovmf},
};
use sha2::{Digest as _, Sha256};

use super::{
    Archives, BuildError, BuildOptions, BuildReport, Flavor, Lock, LockOptions, LockReport, PackageSet, Phase, Progress, Recipe, Reporter,
    base::{self, BaseRequest},
    fetch, initrd,
    kernel::{self, Kernel},
    packages::{self, Packages, Request},
    resolve::Resolver,
    rootfs,
};
use crate::{
    Image,
    image::{CHECKSUM_NAME, DIGEST_NAME, METADATA_NAME},
    tools::{self, Toolbox},
};

/// Changes whenever this code would make other bytes from the same inputs.
const BUILD_FORMAT: u32 = 1;
/// Digest of the inputs, beside the image in the cache.
const STAMPS: &str = "images";
const FIRMWARE: &str = "ovmf.fd";
const KERNEL: &str = "bzImage";
const INITRD: &str = "initramfs.cpio";
const ROOTFS: &str = "rootfs.img";

/// Builds an image into the store, or finds that the one there has the same inputs.
///
/// # Errors
/// [`BuildError`]. The store is left as it was.
pub fn build(options: &BuildOptions, report: &mut Reporter<'_>) -> Result<BuildReport, BuildError> {
    report(Progress::Started(Phase::Plan));
    let (recipe, recipe_text) = Recipe::load(&options.recipe_dir)?;
    let lock = Lock::load(&options.recipe_dir)?;
    for path in [&options.guest.init, &options.guest.agent] {
        if !path.is_file() {
            return Err(BuildError::NoGuestProgram { path: path.clone() });
        }
    }
    let inputs = digest_inputs(options, &recipe_text, lock.as_ref())?;
    let name = options.flavor.image_name(&options.version);
    let target = options.store.join(&name);
    let stamp = options.cache.join(STAMPS).join(format!("{name}.inputs"));
    let is_current = !options.force && fs::read_to_string(&stamp).is_ok_and(|text| text == stamp_text(&inputs, &target));
    if let Some(image) = is_current.then(|| Image::load(&target).ok()).flatten() {
        report(Progress::Reused(Phase::Plan));
        return Ok(BuildReport { image, is_reused: true, replaced: Vec::new() });
    }
    report(Progress::Started(Phase::Packages));
    let archives = Archives::new(&recipe.archive, options.mirrors.clone())?;
    let request = Request { recipe: &recipe, lock, archives: &archives, cache: &options.cache, flavor: options.flavor };
    let packages = Packages::obtain(request, report)?;
    fs::create_dir_all(&options.store).map_err(BuildError::io("create", &options.store))?;
    // Dropped on every way out, so that a failure leaves nothing.
    let work =
        tempfile::Builder::new().prefix(".building-").tempdir_in(&options.cache).map_err(BuildError::io("create", &options.cache))?;
    let staging =
        tempfile::Builder::new().prefix(".building-").tempdir_in(&options.store).map_err(BuildError::io("create", &options.store))?;
    let stages = Stages { options, recipe: &recipe, packages: &packages };
    stages.make(work.path(), staging.path(), report)?;
    publish(&staging.keep(), &target)?;
    let image = Image::load(&target)?;
    if packages.replaced.is_empty() {
        write_file(&stamp, stamp_text(&inputs, &target).as_bytes())?;
    }
    Ok(BuildReport { image, is_reused: false, replaced: packages.replaced })
}

/// Asks the mirror for the current packages and writes the lock file.
///
/// # Errors
/// [`BuildError`]. The old lock file stays if one happens.
pub fn lock(options: &LockOptions, report: &mut Reporter<'_>) -> Result<LockReport, BuildError> {
    report(Progress::Started(Phase::Plan));
    let (recipe, _) = Recipe::load(&options.recipe_dir)?;
    let old = Lock::load(&options.recipe_dir)?;
    let archives = Archives::new(&recipe.archive, options.mirrors.clone())?;
    report(Progress::Started(Phase::Packages));
    let resolver = Resolver::open(&options.cache.join("apt"), &archives)?;
    let new = Lock::new(resolver.resolve_all(&recipe)?, options.now);
    let path = options.recipe_dir.join(super::LOCK_NAME);
    let temporary = path.with_extension("lock.new");
    write_file(&temporary, new.to_text().as_bytes())?;
    fs::rename(&temporary, &path).map_err(BuildError::io("write", &path))?;
    Ok(LockReport { path, packages: new.packages.len(), changed: packages::compare(old.as_ref(), &new) })
}

struct Stages<'a> {
    options: &'a BuildOptions,
    recipe: &'a Recipe,
    packages: &'a Packages,
}

impl Stages<'_> {
    /// Makes all files of the image in `out`, with scratch space in `work`.
    fn make(&self, work: &Path, out: &Path, report: &mut Reporter<'_>) -> Result<(), BuildError> {
        let (options, recipe, time) = (self.options, self.recipe, self.packages.lock.time);
        let tools =
            Toolbox::pinned(self.cached("tools", Phase::Tools, &self.key(PackageSet::Tools, &[]), report, |dir| self.unpack_tools(dir))?);
        let kernel_key = self.key(PackageSet::Kernel, &[]);
        let kernel_files = self.files(PackageSet::Kernel);
        let kernel_dir = self.cached("kernel", Phase::Kernel, &kernel_key, report, |dir| kernel::unpack(&kernel_files, dir, &tools))?;
        let kernel = Kernel::open(&kernel_dir)?;
        let root_set = PackageSet::root(options.flavor);
        let installed = recipe.installed(options.flavor);
        let settings = [installed.join(","), recipe.rootfs.drop.join(","), recipe.rootfs.keep.join(","), time.to_string()];
        let base = self.cached("base", Phase::Base, &self.key(root_set, &settings), report, |dir| {
            base::install(&BaseRequest { recipe, installed: installed.clone(), packages: self.packages.files(root_set), time }, dir)
        })?;

        report(Progress::Started(Phase::RootFilesystem));
        let tree = work.join("tree");
        rootfs::assemble(options, recipe, &base, &kernel, &tools, &tree)?;
        let image = out.join(ROOTFS);
        let data_bytes = rootfs::pack(recipe, &tree, time, &tools, &image)?;
        report(Progress::Started(Phase::Verity));
        let root = rootfs::seal(&image, data_bytes)?;

        report(Progress::Started(Phase::Initrd));
        let initrd = initrd::make(recipe, &base, &kernel, &options.guest.init)?;
        write_file(&out.join(INITRD), &initrd)?;

        report(Progress::Started(Phase::Measure));
        let firmware_dir = work.join("firmware");
        self.unpack_firmware(&firmware_dir)?;
        let firmware = read(&firmware_dir.join(recipe.packages.firmware_file.trim_start_matches('/')))?;
        let kernel_image = read(&kernel.image())?;
        let cmdline = format!("{} dstack.rootfs_hash={root} dstack.rootfs_size={data_bytes}", recipe.kernel.cmdline.join(" "));
        let files = ImageFiles { firmware: &firmware, kernel: &kernel_image, initrd: &initrd, cmdline: &cmdline };
        describe(options, &files, &root.to_string(), !self.packages.replaced.is_empty(), out)
    }

    fn files(&self, set: PackageSet) -> Vec<PathBuf> {
        self.packages.files(set).into_iter().map(|(_, path)| path).collect()
    }

    fn unpack_tools(&self, dir: &Path) -> Result<(), BuildError> {
        extract(&self.files(PackageSet::Tools), dir)
    }

    fn unpack_firmware(&self, dir: &Path) -> Result<(), BuildError> {
        extract(&self.files(PackageSet::Firmware), dir)
    }

    /// Names a cached step: its packages and settings.
    fn key(&self, set: PackageSet, settings: &[String]) -> String {
        let mut hasher = Sha256::new();
        hasher.update(format!("{BUILD_FORMAT}\n"));
        for package in self.packages.lock.set(set) {
            hasher.update(format!("{}\n", package.sha256));
        }
        for setting in settings {
            hasher.update(format!("{}:{setting}\n", setting.len()));
        }
        hex::encode(hasher.finalize())
    }

    /// The folder of a step, made by `make` unless it is in the cache. Appears only when complete.
    fn cached(
        &self,
        step: &str,
        phase: Phase,
        key: &str,
        report: &mut Reporter<'_>,
        make: impl FnOnce(&Path) -> Result<(), BuildError>,
    ) -> Result<PathBuf, BuildError> {
        let parent = self.options.cache.join(step);
        let target = parent.join(key);
        if target.is_dir() {
            report(Progress::Reused(phase));
            return Ok(target);
        }
        report(Progress::Started(phase));
        fs::create_dir_all(&parent).map_err(BuildError::io("create", &parent))?;
        let scratch = tempfile::Builder::new().prefix(".making-").tempdir_in(&parent).map_err(BuildError::io("create", &parent))?;
        let made = scratch.path().join("tree");
        make(&made)?;
        match fs::rename(&made, &target) {
            // Another build was quicker.
            Err(_) if target.is_dir() => {}
            result => result.map_err(BuildError::io("write", &target))?,
        }
        Ok(target)
    }
}

fn extract(packages: &[PathBuf], dir: &Path) -> Result<(), BuildError> {
    fs::create_dir_all(dir).map_err(BuildError::io("create", dir))?;
    for package in packages {
        tools::run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(dir))?;
    }
    Ok(())
}

/// Writes boot files, measurement, metadata and checksums.
fn describe(options: &BuildOptions, files: &ImageFiles<'_>, root: &str, is_unlocked: bool, out: &Path) -> Result<(), BuildError> {
    let failed = |error: &dyn std::fmt::Display| BuildError::Measure { reason: error.to_string() };
    let measurement = ImageMeasurement::from_files(files).map_err(|error| failed(&error))?.encode();
    let variant = identify_ovmf(files.firmware).map_err(|error| failed(&error))?;
    let variant = serde_json::to_value(variant).map_err(|error| failed(&error))?;
    let metadata = ImageMetadata {
        bios: FIRMWARE.to_owned(),
        bios_sev: None,
        kernel: KERNEL.to_owned(),
        initrd: INITRD.to_owned(),
        rootfs: ROOTFS.to_owned(),
        cmdline: files.cmdline.to_owned(),
        version: options.version.clone(),
        git_revision: options.git_revision.clone(),
        shared_ro: true,
        is_dev: options.flavor == Flavor::Development,
        ovmf_variant: variant.as_str().map(str::to_owned),
        rootfs_hash: Some(root.to_owned()),
        unlocked: is_unlocked,
    };
    let mut metadata = serde_json::to_vec_pretty(&metadata).map_err(|error| failed(&error))?;
    metadata.push(b'\n');
    let listed: [(&str, &[u8]); 5] = [
        (FIRMWARE, files.firmware),
        (KERNEL, files.kernel),
        (INITRD, files.initrd),
        (METADATA_NAME, &metadata),
        (TDX_DOCUMENT_NAME, &measurement),
    ];
    let mut checksums = String::new();
    for (name, bytes) in listed {
        write_file(&out.join(name), bytes)?;
        checksums.push_str(&binding_line(name, bytes));
    }
    write_file(&out.join(CHECKSUM_NAME), checksums.as_bytes())?;
    write_file(&out.join(DIGEST_NAME), format!("{}\n", os_image_hash(checksums.as_bytes())).as_bytes())
}

/// Puts a finished directory in place of an older one.
fn publish(staging: &Path, target: &Path) -> Result<(), BuildError> {
    use std::os::unix::fs::PermissionsExt as _;
    let result = (|| {
        fs::set_permissions(staging, fs::Permissions::from_mode(0o755))?;
        let old = staging.with_extension("old");
        if target.exists() {
            fs::rename(target, &old)?;
        }
        fs::rename(staging, target)?;
        if old.exists() { fs::remove_dir_all(&old) } else { Ok(()) }
    })();
    if result.is_err() {
        let _ = fs::remove_dir_all(staging);
    }
    result.map_err(BuildError::io("write", target))
}

/// Everything that decides about the bytes of the image.
fn digest_inputs(options: &BuildOptions, recipe: &str, lock: Option<&Lock>) -> Result<String, BuildError> {
    let mut hasher = Sha256::new();
    let lock = lock.map(Lock::to_text).unwrap_or_default();
    for text in [recipe, &lock, options.flavor.as_str(), &options.version, &options.git_revision] {
        hasher.update(format!("{BUILD_FORMAT}:{}:{text}\n", text.len()));
    }
    for path in [&options.guest.init, &options.guest.agent] {
        let digest = fetch::sha256(path).map_err(BuildError::io("read", path))?;
        hasher.update(digest.to_string());
    }
    Ok(hex::encode(hasher.finalize()))
}

/// The stamp holds only while the image directory is the one that was built.
fn stamp_text(inputs: &str, target: &Path) -> String {
    let mut digest = String::new();
    let _ = File::open(target.join(DIGEST_NAME)).and_then(|file| file.take(128).read_to_string(&mut digest));
    let rootfs = fs::metadata(target.join(ROOTFS)).map_or(0, |meta| meta.len());
    format!("{inputs}\n{}\n{rootfs}\n", digest.trim())
}

fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    fs::read(path).map_err(BuildError::io("read", path))
}

fn write_file(path: &Path, content: &[u8]) -> Result<(), BuildError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(BuildError::io("create", parent))?;
    }
    fs::write(path, content).map_err(BuildError::io("write", path))
}
