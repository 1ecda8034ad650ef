//! `stack.toml`: what the first `up` chose.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
};

use dstack_service::fs::write_atomic;
use serde::{Deserialize, Serialize};

use crate::{
    failure::{Failure, Outcome},
    home::Home,
};

const VERSION: u32 = 1;

/// Ports and paths of a local stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    version: u32,
    /// Port of the VMM's API on 127.0.0.1.
    pub vmm_port: u16,
    /// Port of the KMS on 127.0.0.1.
    pub kms_port: u16,
    /// Port of the software TEE's collateral service on 127.0.0.1.
    pub collateral_port: u16,
    /// OS images.
    pub images: PathBuf,
    /// Registry mirror as this machine sees it; empty for none.
    #[serde(default)]
    pub registry: String,
}

impl Settings {
    /// Reads the file; `None` where no stack was ever started.
    ///
    /// Errors: unreadable or invalid.
    pub(super) fn load(home: &Home) -> Outcome<Option<Self>> {
        let path = home.stack_file();
        if !path.exists() {
            return Ok(None);
        }
        let settings: Self = dstack_service::config::load(&path)?;
        if settings.version != VERSION {
            let cause = format!("{} has version {}, this program knows {VERSION}", path.display(), settings.version);
            return Err(Failure::new(
                "stack/version",
                cause,
                "use the dstack that started this stack, or remove it with `dstack down --purge`",
            ));
        }
        Ok(Some(settings))
    }

    /// Picks ports: the usual ones where they are free.
    ///
    /// Errors: no free port at all.
    pub(super) fn choose(home: &Home) -> Outcome<Self> {
        let mut held = Vec::new();
        let mut pick = |usual| -> Outcome<u16> {
            let (port, socket) = bind(usual)
                .or_else(|_| bind(0))
                .map_err(|error| Failure::new("stack/no-port", error.to_string(), "free a TCP port on 127.0.0.1"))?;
            held.push(socket);
            Ok(port)
        };
        Ok(Self {
            version: VERSION,
            vmm_port: pick(9080)?,
            kms_port: pick(9443)?,
            collateral_port: pick(8081)?,
            images: home.images_to_use(),
            registry: String::new(),
        })
    }

    /// Writes the file.
    ///
    /// Errors: not writable.
    pub(super) fn save(&self, home: &Home) -> Outcome {
        let path = home.stack_file();
        let text = toml::to_string(self).map_err(|error| Failure::new("cli/internal", error.to_string(), "report this defect"))?;
        let text = format!("# Written by `dstack up`.\n{text}");
        write_atomic(&path, text.as_bytes(), 0o600).map_err(|error| Failure::io("writing", &path, &error))
    }
}

fn bind(port: u16) -> std::io::Result<(u16, TcpListener)> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    Ok((listener.local_addr()?.port(), listener))
}

/// Whether nothing listens on a port of 127.0.0.1.
#[must_use]
pub(super) fn is_free(port: u16) -> bool {
    bind(port).is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn chosen_settings_survive_and_ports_differ() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        assert_eq!(Settings::load(&home).unwrap(), None);
        let settings = Settings::choose(&home).unwrap();
        settings.save(&home).unwrap();

        assert_eq!(Settings::load(&home).unwrap().unwrap(), settings);
        assert!(settings.vmm_port != settings.kms_port && settings.kms_port != settings.collateral_port);
    }

    #[test]
    fn a_newer_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        Settings { version: 9, ..Settings::choose(&home).unwrap() }.save(&home).unwrap();

        assert_eq!(Settings::load(&home).unwrap_err().report.code, "stack/version");
    }
}
