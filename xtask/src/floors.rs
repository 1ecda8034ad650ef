//! The law of floors: a crate depends on its own floor or a lower one, programs never on programs.
//!
//! Each crate says where it stands in `[package.metadata.dstack]`.

use std::collections::BTreeMap;

use cargo_metadata::{DependencyKind, Metadata, Package};
use serde::Deserialize;

/// Floor of programs.
const PROGRAM_FLOOR: u8 = 3;
/// External crates that would bring I/O, a clock or an executor into floors 0 and 1.
const IMPURE: [&str; 9] = ["tokio", "hyper", "axum", "nix", "rusqlite", "tempfile", "tokio-rustls", "rand", "getrandom"];
/// Crates a guest must never link: they run the host's side.
const HOST_ONLY: [&str; 4] = ["dstack-vmm", "dstack-supervisor", "dstack-tee-simulator", "dstack-os-image"];

/// What tests stand on.
const TESTKIT: &str = "dstack-testkit";

#[derive(Deserialize)]
struct Placement {
    floor: u8,
    #[serde(rename = "runs-on")]
    runs_on: Vec<String>,
    reason: String,
}

/// Every breach, one sentence each.
pub(crate) fn check(metadata: &Metadata) -> Vec<String> {
    let mut findings = Vec::new();
    let mut placements = BTreeMap::new();
    for package in metadata.workspace_packages() {
        match placement_of(package) {
            Some(placement) if !placement.reason.is_empty() && !placement.runs_on.is_empty() => {
                placements.insert(package.name.to_string(), placement);
            }
            _ => findings.push(format!("{}: [package.metadata.dstack] needs floor, runs-on and reason", package.name)),
        }
    }
    for package in metadata.workspace_packages() {
        if let Some(placement) = placements.get(package.name.as_str()) {
            check_package(package, placement, &placements, &mut findings);
        }
    }
    findings
}

/// Folders of the packages on floors 0 and 1.
pub(crate) fn pure_packages(metadata: &Metadata) -> Vec<String> {
    let is_pure = |package: &&Package| placement_of(package).is_some_and(|placement| placement.floor <= 1);
    let folder = |package: &Package| package.manifest_path.parent()?.strip_prefix(&metadata.workspace_root).ok().map(ToString::to_string);
    metadata.workspace_packages().into_iter().filter(is_pure).filter_map(folder).collect()
}

fn placement_of(package: &Package) -> Option<Placement> {
    Placement::deserialize(package.metadata.get("dstack")?).ok()
}

fn check_package(package: &Package, placement: &Placement, all: &BTreeMap<String, Placement>, findings: &mut Vec<String>) {
    let name = &package.name;
    for dependency in package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal) {
        if placement.floor <= 1 && IMPURE.contains(&dependency.name.as_str()) {
            findings.push(format!("{name}: floor {} must stay pure and depends on {}", placement.floor, dependency.name));
        }
        if placement.runs_on.iter().all(|place| place == "guest") && HOST_ONLY.contains(&dependency.name.as_str()) {
            findings.push(format!("{name}: guest code links host code {}", dependency.name));
        }
        if dependency.name == "anyhow" && placement.floor < PROGRAM_FLOOR {
            findings.push(format!("{name}: libraries do not use anyhow"));
        }
        let Some(other) = all.get(&dependency.name) else { continue };
        if other.floor > placement.floor {
            findings.push(format!("{name} (floor {}) depends on {} (floor {})", placement.floor, dependency.name, other.floor));
        }
        if placement.floor == PROGRAM_FLOOR && other.floor == PROGRAM_FLOOR {
            findings.push(format!("{name}: a program depends on the program {}", dependency.name));
        }
    }
    for dependency in &package.dependencies {
        if dependency.name == TESTKIT && dependency.kind != DependencyKind::Development {
            findings.push(format!("{name}: {TESTKIT} is for tests, so it is a dev-dependency"));
        }
        if dependency.source.as_ref().is_some_and(|source| source.repr.starts_with("git+")) {
            findings.push(format!("{name}: {} comes from git", dependency.name));
        }
    }
}
