//! Where Debian packages come from.

use std::process::Command;

use super::{BuildError, LockedPackage, recipe::ArchiveRecipe};
use crate::tools;

/// Base addresses of the two archives, without a slash at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrors {
    /// The main archive.
    pub debian: String,
    /// The security archive.
    pub security: String,
}

impl Mirrors {
    /// The mirrors that this host's own apt is configured with.
    ///
    /// # Errors
    /// [`BuildError::NoMirror`]: it has no Debian archive, for instance because the host is not Debian.
    pub fn of_host() -> Result<Self, BuildError> {
        let mut command = Command::new("apt-get");
        command.args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]);
        let output = tools::run(&mut command)?;
        Self::from_targets(&String::from_utf8_lossy(&output)).ok_or(BuildError::NoMirror)
    }

    fn from_targets(targets: &str) -> Option<Self> {
        let ending = |name: &str| targets.lines().map(|uri| uri.trim_end_matches('/')).find(|uri| uri.ends_with(name)).map(str::to_owned);
        let debian = ending("/debian")?;
        let security = ending("/debian-security").unwrap_or_else(|| format!("{debian}-security"));
        Some(Self { debian, security })
    }
}

/// The suites of a release and where each is.
#[derive(Debug, Clone)]
pub struct Archives {
    mirrors: Mirrors,
    release: String,
    snapshot: String,
    keyring: String,
}

impl Archives {
    /// What the recipe asks for; mirrors: those given, else those of the recipe, else those of the host.
    ///
    /// # Errors
    /// [`BuildError::NoMirror`].
    pub fn new(recipe: &ArchiveRecipe, mirrors: Option<Mirrors>) -> Result<Self, BuildError> {
        let plain = |uri: &String| uri.trim_end_matches('/').to_owned();
        let mirrors = match (mirrors, &recipe.mirror) {
            (Some(mirrors), _) => mirrors,
            (None, Some(debian)) => Mirrors {
                debian: plain(debian),
                security: recipe.security_mirror.as_ref().map_or_else(|| format!("{}-security", plain(debian)), plain),
            },
            (None, None) => Mirrors::of_host()?,
        };
        Ok(Self { mirrors, release: recipe.release.clone(), snapshot: recipe.snapshot.clone(), keyring: recipe.keyring.clone() })
    }

    /// The suites, in the order in which they are preferred.
    #[must_use]
    pub fn suites(&self) -> [String; 4] {
        ["", "-security", "-updates", "-backports"].map(|suffix| format!("{}{suffix}", self.release))
    }

    /// Name of the backports suite.
    #[must_use]
    pub fn backports(&self) -> String {
        format!("{}-backports", self.release)
    }

    /// Base address of a suite's archive on the mirror.
    #[must_use]
    pub fn base(&self, suite: &str) -> &str {
        if suite.ends_with("-security") { &self.mirrors.security } else { &self.mirrors.debian }
    }

    /// Address of a package on the mirror.
    #[must_use]
    pub fn mirror_url(&self, package: &LockedPackage) -> String {
        format!("{}/{}", self.base(&package.suite), encode(&package.file))
    }

    /// Address of a package in the archive of past states.
    #[must_use]
    pub fn snapshot_url(&self, package: &LockedPackage, time: &str) -> String {
        let archive = if package.suite.ends_with("-security") { "debian-security" } else { "debian" };
        let base = self.snapshot.replace("{archive}", archive).replace("{time}", time);
        format!("{}/{}", base.trim_end_matches('/'), encode(&package.file))
    }

    /// `sources.list` with all suites.
    #[must_use]
    pub fn sources(&self) -> String {
        let line = |suite: &String| format!("deb [arch=amd64 signed-by={}] {} {suite} main\n", self.keyring, self.base(suite));
        self.suites().iter().map(line).collect()
    }
}

fn encode(path: &str) -> String {
    path.replace('+', "%2b").replace('~', "%7e")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_those_of_the_host() {
        let targets = "https://deb.nodesource.com/node_20.x/\nhttp://mirror.example/debian/\nhttp://sec.example/debian-security/\n";

        let mirrors = Mirrors::from_targets(targets).unwrap();

        assert_eq!(mirrors.debian, "http://mirror.example/debian");
        assert_eq!(mirrors.security, "http://sec.example/debian-security");
        assert_eq!(Mirrors::from_targets("http://archive.ubuntu.com/ubuntu/\n"), None);
    }
}
