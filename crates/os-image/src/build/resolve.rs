//! Lets apt say which packages a set needs, without touching the host's own package state.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Archives, BuildError, LockedPackage, PackageSet, Recipe};
use crate::tools;

/// A private apt state with fresh package lists.
pub(super) struct Resolver<'a> {
    dir: PathBuf,
    archives: &'a Archives,
    known: BTreeMap<String, LockedPackage>,
}

impl<'a> Resolver<'a> {
    /// Fetches the package lists. `dir` is emptied of nothing; its lists are brought up to date.
    pub(super) fn open(dir: &Path, archives: &'a Archives) -> Result<Self, BuildError> {
        for folder in ["lists/partial", "cache/archives/partial"] {
            let path = dir.join(folder);
            fs::create_dir_all(&path).map_err(BuildError::io("create", &path))?;
        }
        for (name, content) in [("sources.list", archives.sources()), ("status", String::new())] {
            let path = dir.join(name);
            fs::write(&path, content).map_err(BuildError::io("write", &path))?;
        }
        let mut resolver = Self { dir: dir.to_owned(), archives, known: BTreeMap::new() };
        tools::run(resolver.apt("apt-get").args(["update", "--error-on=any"]))?;
        resolver.known = resolver.read_lists()?;
        Ok(resolver)
    }

    /// Every set of the recipe.
    pub(super) fn resolve_all(&self, recipe: &Recipe) -> Result<Vec<LockedPackage>, BuildError> {
        let mut packages: BTreeMap<String, LockedPackage> = BTreeMap::new();
        for set in [PackageSet::Production, PackageSet::Development, PackageSet::Kernel, PackageSet::Firmware, PackageSet::Tools] {
            for mut package in self.resolve(recipe, set)? {
                package.sets = vec![set];
                packages.entry(package.file.clone()).and_modify(|known| known.sets.push(set)).or_insert(package);
            }
        }
        Ok(packages.into_values().collect())
    }

    fn resolve(&self, recipe: &Recipe, set: PackageSet) -> Result<Vec<LockedPackage>, BuildError> {
        let packages = &recipe.packages;
        let (wanted, suite): (Vec<&str>, Option<String>) = match set {
            PackageSet::Production => (with_essential(recipe.installed(super::Flavor::Production)), None),
            PackageSet::Development => (with_essential(recipe.installed(super::Flavor::Development)), None),
            PackageSet::Kernel => (vec![&packages.kernel], Some(self.archives.backports())),
            PackageSet::Firmware => (vec![&packages.firmware], None),
            PackageSet::Tools => (packages.tools.iter().map(String::as_str).collect(), None),
        };
        let mut apt = self.apt("apt-get");
        apt.args(["install", "--yes", "--print-uris", "-qq"]);
        if let Some(suite) = suite {
            apt.arg("--target-release").arg(suite);
        }
        let output = tools::run(apt.args(wanted))?;
        let found = self.match_uris(&String::from_utf8_lossy(&output))?;
        let is_part = |package: &LockedPackage| match set {
            PackageSet::Kernel => packages.kernel_parts.iter().any(|prefix| package.name.starts_with(prefix.as_str())),
            PackageSet::Firmware => package.name == packages.firmware,
            _ => true,
        };
        Ok(found.into_iter().filter(is_part).collect())
    }

    /// `'<uri>' <name> <size> <hash>` lines to the packages of the lists.
    fn match_uris(&self, output: &str) -> Result<Vec<LockedPackage>, BuildError> {
        let mut found = Vec::new();
        for line in output.lines().filter_map(|line| line.strip_prefix('\'')) {
            let uri = decode(line.split('\'').next().unwrap_or_default());
            let file = self
                .archives
                .suites()
                .iter()
                .find_map(|suite| uri.strip_prefix(self.archives.base(suite))?.strip_prefix('/').map(str::to_owned));
            let package = file.and_then(|file| self.known.get(&file));
            found.push(package.cloned().ok_or(BuildError::NotInPackages { what: uri })?);
        }
        Ok(found)
    }

    fn read_lists(&self) -> Result<BTreeMap<String, LockedPackage>, BuildError> {
        let mut known = BTreeMap::new();
        let targets =
            tools::run(self.apt("apt-get").args(["indextargets", "--format", "$(CODENAME) $(FILENAME)", "Created-By: Packages"]))?;
        for line in String::from_utf8_lossy(&targets).lines() {
            let Some((suite, path)) = line.split_once(' ') else { continue };
            let path = Path::new(path);
            let text = fs::read_to_string(path).map_err(BuildError::io("read", path))?;
            for stanza in text.split("\n\n") {
                if let Some(package) = parse_stanza(stanza, suite) {
                    known.entry(package.file.clone()).or_insert(package);
                }
            }
        }
        Ok(known)
    }

    /// apt with the host's proxy and certificate settings, but its own state.
    fn apt(&self, program: &str) -> Command {
        let dir = self.dir.display();
        let mut command = Command::new(program);
        command.env("LC_ALL", "C.UTF-8");
        let options = [
            format!("Dir::State={dir}"),
            format!("Dir::State::status={dir}/status"),
            format!("Dir::Cache={dir}/cache"),
            format!("Dir::Etc::sourcelist={dir}/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "Dir::Etc::preferences=/dev/null".to_owned(),
            "Dir::Etc::preferencesparts=/dev/null".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Install-Recommends=false".to_owned(),
            "APT::Sandbox::User=".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::GzipIndexes=false".to_owned(),
            "Acquire::http::Timeout=20".to_owned(),
            "Debug::NoLocking=true".to_owned(),
        ];
        for option in options {
            command.arg("-o").arg(option);
        }
        command
    }
}

fn with_essential(mut packages: Vec<&str>) -> Vec<&str> {
    packages.insert(0, "?essential");
    packages
}

fn parse_stanza(stanza: &str, suite: &str) -> Option<LockedPackage> {
    let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    Some(LockedPackage {
        name: field("Package")?.to_owned(),
        version: field("Version")?.to_owned(),
        architecture: field("Architecture")?.to_owned(),
        suite: suite.to_owned(),
        file: field("Filename")?.to_owned(),
        bytes: field("Size")?.parse().ok()?,
        sha256: field("SHA256")?.parse().ok()?,
        sets: Vec::new(),
    })
}

fn decode(uri: &str) -> String {
    let mut text = String::new();
    let mut rest = uri;
    while let Some((before, after)) = rest.split_once('%') {
        text.push_str(before);
        let code = after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match code {
            Some(byte) if byte.is_ascii() => {
                text.push(char::from(byte));
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                text.push('%');
                rest = after;
            }
        }
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_decoded() {
        assert_eq!(decode("a/gcc-14_1%3a14.2%2b1%7erc_%zz"), "a/gcc-14_1:14.2+1~rc_%zz");
    }
}
