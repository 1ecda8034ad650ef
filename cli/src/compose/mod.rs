//! A docker-compose file, as far as a deployment has to understand it. Its text goes into the VM unchanged.

mod interpolate;
mod ports;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::Deserialize;
use serde_yaml_ng::Value;

pub(crate) use interpolate::{Variable, interpolate, variables};
pub(crate) use ports::{ComposePort, Protocol};

use crate::failure::{Failure, Outcome};

/// Largest compose file that is read.
const MAX_COMPOSE_BYTES: u64 = 4 << 20;

/// A checked compose file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ComposeFile {
    /// The file's text, unchanged.
    pub text: String,
    /// The project's name, where the file gives one.
    pub name: Option<String>,
    /// Services by name.
    pub services: Vec<Service>,
    /// What the file takes from its environment.
    pub variables: Vec<Variable>,
    /// What will not work as it does here, as plain sentences.
    pub remarks: Vec<String>,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    /// Its name.
    pub name: String,
    /// Its image, variables not yet replaced.
    pub image: String,
    /// Its `ports`, variables not yet replaced.
    pub ports: Vec<Value>,
}

#[derive(Deserialize)]
struct Document {
    name: Option<String>,
    #[serde(default)]
    services: BTreeMap<String, ServiceDocument>,
    include: Option<Value>,
    #[serde(default)]
    secrets: BTreeMap<String, Value>,
    #[serde(default)]
    configs: BTreeMap<String, Value>,
}

#[derive(Deserialize, Default)]
struct ServiceDocument {
    image: Option<String>,
    build: Option<Value>,
    extends: Option<Value>,
    #[serde(default)]
    ports: Vec<Value>,
    #[serde(default)]
    volumes: Vec<Value>,
    env_file: Option<Value>,
}

impl ComposeFile {
    /// Reads and checks a file.
    ///
    /// Errors: unreadable, not YAML or not a compose file (with line and column), or something a VM cannot do.
    pub(crate) fn read(path: &Path) -> Outcome<Self> {
        let size = std::fs::metadata(path).map_err(|error| not_found(path, &error))?.len();
        if size > MAX_COMPOSE_BYTES {
            return Err(Failure::new(
                "compose/too-large",
                format!("{} has {size} bytes, at most 4 MiB are read", path.display()),
                "name the compose file",
            ));
        }
        let text = std::fs::read_to_string(path).map_err(|error| not_found(path, &error))?;
        Self::parse(text, path)
    }

    /// Checks `text`, which came from `path`.
    ///
    /// Errors: as [`Self::read`].
    pub(crate) fn parse(text: String, path: &Path) -> Outcome<Self> {
        // Syntax first, then types: both carry positions, and a missing bracket is not to look like a wrong type.
        let _: Value = serde_yaml_ng::from_str(&text).map_err(|error| syntax(path, &text, &error))?;
        let typed: Document = serde_yaml_ng::from_str(&text).map_err(|error| syntax(path, &text, &error))?;
        let document = merged(&text).unwrap_or(typed);
        if document.services.is_empty() {
            let cause = format!("{} defines no services", path.display());
            return Err(Failure::new("compose/no-services", cause, "add a `services:` section with at least one service"));
        }
        if document.include.is_some() {
            return Err(unsupported(
                path,
                &text,
                "include:",
                "`include` names files that do not travel into the VM",
                "merge the files with `docker compose config` and deploy the result",
            ));
        }
        let mut remarks = Vec::new();
        let mut services = Vec::new();
        for (name, service) in document.services {
            services.push(check_service(name, service, path, &text, &mut remarks)?);
        }
        for (kind, entries) in [("secret", &document.secrets), ("config", &document.configs)] {
            for (name, _) in entries.iter().filter(|(_, value)| value.get("file").is_some()) {
                remarks.push(format!("{kind} `{name}` is a file of this machine, which the VM does not have; use an environment variable"));
            }
        }
        let variables = variables(&text);
        Ok(Self { name: document.name, services, variables, remarks, text })
    }

    /// Ports that the services publish, with variables taken from `lookup`.
    ///
    /// Errors: an entry that cannot be read.
    pub(crate) fn ports(&self, lookup: &dyn Fn(&str) -> Option<String>) -> Outcome<Vec<ComposePort>> {
        let mut ports = Vec::new();
        for service in &self.services {
            for entry in &service.ports {
                ports.extend(ports::read(&service.name, entry, lookup)?);
            }
        }
        let mut seen = BTreeSet::new();
        ports.retain(|port: &ComposePort| seen.insert((port.protocol, port.published)));
        Ok(ports)
    }
}

/// The document with `<<` merges applied; `None` where that makes no sense (then it stays as read).
fn merged(text: &str) -> Option<Document> {
    let mut value: Value = serde_yaml_ng::from_str(text).ok()?;
    value.apply_merge().ok()?;
    serde_yaml_ng::from_value(value).ok()
}

fn check_service(name: String, service: ServiceDocument, path: &Path, text: &str, remarks: &mut Vec<String>) -> Outcome<Service> {
    if service.build.is_some() {
        let what = format!("service `{name}` has a `build` section, and a VM runs ready images only");
        let fix = format!(
            "build and push the image, then write `image: <registry>/{name}@sha256:…` instead, or export it as an OCI archive and add --image-archive"
        );
        return Err(unsupported(path, text, "build:", &what, &fix));
    }
    if service.extends.as_ref().is_some_and(|extends| extends.get("file").is_some()) {
        let what = format!("service `{name}` extends another file, which does not travel into the VM");
        return Err(unsupported(path, text, "extends:", &what, "merge the files with `docker compose config` and deploy the result"));
    }
    let Some(image) = service.image else {
        let what = format!("service `{name}` has no image");
        return Err(unsupported(path, text, &format!("{name}:"), &what, "add an `image:` line"));
    };
    if service.env_file.is_some() {
        remarks.push(format!(
            "service `{name}` reads an env_file, which the VM does not have; pass it with -e and use ${{NAME}} in the compose file"
        ));
    }
    for volume in &service.volumes {
        let source = match volume {
            Value::String(short) => short.split(':').next().unwrap_or_default(),
            long => long.get("source").and_then(Value::as_str).unwrap_or_default(),
        };
        if source.starts_with("./") || source.starts_with("../") || source.starts_with('~') || source == "." {
            remarks.push(format!("service `{name}` mounts {source} of this machine, which is empty in the VM"));
        }
    }
    Ok(Service { name, image, ports: service.ports })
}

fn not_found(path: &Path, error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::NotFound {
        return Failure::usage("compose/not-found", format!("there is no {}", path.display()), "name the compose file with -c FILE");
    }
    Failure::io("reading", path, error)
}

fn syntax(path: &Path, text: &str, error: &serde_yaml_ng::Error) -> Failure {
    let message = error.to_string();
    let Some(location) = error.location() else {
        return Failure::new(
            "compose/syntax",
            format!("{}: {message}", path.display()),
            "correct the compose file; `docker compose config` checks it",
        );
    };
    let (line, column) = (location.line(), location.column());
    let reason = message.split(" at line ").next().unwrap_or(&message);
    let source = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    let excerpt = if source.chars().count() <= 120 && !source.trim().is_empty() {
        let marker = " ".repeat(column.saturating_sub(1).min(120));
        let number = line.to_string();
        format!("\n{number} | {source}\n{:width$} | {marker}^", "", width = number.len())
    } else {
        String::new()
    };
    let cause = format!("{}:{line}:{column}: {reason}{excerpt}", path.display());
    let fix = format!("correct line {line} of {}", path.display());
    Failure::new("compose/syntax", cause, fix).during("reading the compose file")
}

fn unsupported(path: &Path, text: &str, needle: &str, what: &str, fix: &str) -> Failure {
    let line = text.lines().position(|line| line.trim_start().starts_with(needle));
    let place = line.map_or(path.display().to_string(), |line| format!("{}:{}", path.display(), line + 1));
    Failure::new("compose/unsupported", format!("{place}: {what}"), fix)
}

#[cfg(test)]
mod tests;
