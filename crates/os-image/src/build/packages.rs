//! The packages of a build: the locked ones, or for development the current ones, and saying so.

use std::path::{Path, PathBuf};

use super::{
    Archives, BuildError, Flavor, Lock, LockedPackage, PackageSet, Progress, Recipe, Reporter, fetch::PackageCache, resolve::Resolver,
};

/// A package that is not the locked one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// Its name.
    pub name: String,
    /// Version in the lock; `None` if it was not there.
    pub locked: Option<String>,
    /// Version used; `None` if it is not needed any more.
    pub used: Option<String>,
}

/// Packages of a build, all present in the cache.
pub(super) struct Packages {
    pub(super) lock: Lock,
    pub(super) replaced: Vec<Replaced>,
    cache: PackageCache,
}

/// What [`Packages::obtain`] needs to know.
pub(super) struct Request<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) lock: Option<Lock>,
    pub(super) archives: &'a Archives,
    pub(super) cache: &'a Path,
    pub(super) flavor: Flavor,
}

impl Packages {
    /// Makes all packages of the flavour present.
    pub(super) fn obtain(request: Request<'_>, report: &mut Reporter<'_>) -> Result<Self, BuildError> {
        let cache = PackageCache::open(request.cache.join("packages"))?;
        let needed = PackageSet::needed(request.flavor);
        let is_needed = |package: &&LockedPackage| package.sets.iter().any(|set| needed.contains(set));
        let gone: Vec<String> = match &request.lock {
            None => Vec::new(),
            Some(lock) => {
                check_covers(request.recipe, lock, request.flavor)?;
                let wanted: Vec<&LockedPackage> = lock.packages.iter().filter(is_needed).collect();
                cache.fetch(&wanted, request.archives, Some(lock), report)?.iter().map(|package| package.label()).collect()
            }
        };
        let old = match request.lock {
            Some(lock) if gone.is_empty() => return Ok(Self { lock, replaced: Vec::new(), cache }),
            _ if request.flavor == Flavor::Production && gone.is_empty() => {
                return Err(BuildError::StaleLock { reason: "there is no lock file, and a production image needs one".to_owned() });
            }
            Some(_) if request.flavor == Flavor::Production => return Err(BuildError::PackagesGone { packages: gone }),
            old => old,
        };
        let resolver = Resolver::open(&request.cache.join("apt"), request.archives)?;
        let time = old.as_ref().map_or(0, |lock| lock.time);
        let current = Lock::new(resolver.resolve_all(request.recipe)?, time);
        let wanted: Vec<&LockedPackage> = current.packages.iter().filter(is_needed).collect();
        let failed = cache.fetch(&wanted, request.archives, None, report)?;
        if !failed.is_empty() {
            return Err(BuildError::FetchFailed { packages: failed.iter().map(|package| package.label()).collect() });
        }
        let replaced = compare(old.as_ref(), &current);
        report(Progress::Note(format!(
            "unlocked development image: {} packages differ from the lock file, which names versions that are gone ({}); `dstack os lock` renews it",
            replaced.len(),
            gone.first().map_or("no lock file", String::as_str),
        )));
        Ok(Self { lock: current, replaced, cache })
    }

    /// Packages of `set` with their files.
    pub(super) fn files(&self, set: PackageSet) -> Vec<(&LockedPackage, PathBuf)> {
        self.lock.set(set).map(|package| (package, self.cache.path(package))).collect()
    }
}

/// What the recipe names must be in the lock; otherwise the image would silently lack it.
fn check_covers(recipe: &Recipe, lock: &Lock, flavor: Flavor) -> Result<(), BuildError> {
    let root = PackageSet::root(flavor);
    let installed = recipe.installed(flavor).into_iter().map(|name| (root, name));
    let tools = recipe.packages.tools.iter().map(|name| (PackageSet::Tools, name.as_str()));
    let locked = lock.by_name();
    for (set, name) in installed.chain(tools).chain([(PackageSet::Firmware, recipe.packages.firmware.as_str())]) {
        if !locked.contains_key(&(set, name)) {
            return Err(BuildError::StaleLock { reason: format!("package {name} of the recipe is not locked") });
        }
    }
    Ok(())
}

/// Differences between two locks, by package name: another version, or other bytes of the same one.
pub(super) fn compare(old: Option<&Lock>, new: &Lock) -> Vec<Replaced> {
    let empty = Lock::new(Vec::new(), 0);
    let (old, new) = (old.unwrap_or(&empty).by_name(), new.by_name());
    let mut replaced: Vec<Replaced> = Vec::new();
    for key in old.keys().chain(new.keys()) {
        let (locked, used) = (old.get(key), new.get(key));
        let is_told = replaced.iter().any(|told| told.name == key.1);
        if locked.map(|package| package.sha256) != used.map(|package| package.sha256) && !is_told {
            replaced.push(Replaced {
                name: key.1.to_owned(),
                locked: locked.map(|package| package.version.clone()),
                used: used.map(|package| package.version.clone()),
            });
        }
    }
    replaced.sort_by(|a, b| a.name.cmp(&b.name));
    replaced
}
