//! Every error that a user can meet, found in the sources: `docs/reference/errors.md` lists them, and the law about them is checked.
//!
//! Codes come from two places: `impl UserFacing for …`, where code and fix are arms of a `match`, and calls with the three parts
//! written out, `RpcError::new(code, cause, fix)` and `Failure::new(code, cause, fix)`.

mod catalog;
mod page;
mod template;

use std::fs;

use anyhow::Context as _;

use crate::sources;
use catalog::Catalog;

const PAGE: &str = "docs/reference/errors.md";

/// Codes that more than one package gives, and why that is right.
const SHARED: [(&str, &str); 3] = [
    ("config/invalid", "what a service's file breaks, whichever service it is"),
    ("image/not-found", "the command line knows the VMM's images and says so before the VMM has to"),
    ("vmm/port-in-use", "the command line tries a port before the VMM has to"),
];

/// Writes the page.
pub(crate) fn write() -> anyhow::Result<()> {
    let path = sources::root().join(PAGE);
    let text = page::render(&Catalog::of(&sources::production()?));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    fs::write(&path, text).with_context(|| format!("writing {PAGE}"))
}

/// Every breach, one sentence each.
pub(crate) fn check() -> anyhow::Result<Vec<String>> {
    let catalog = Catalog::of(&sources::production()?);
    let mut findings = catalog.findings(&SHARED.map(|(code, _)| code));
    let nameless = catalog.codes.keys().map(|code| page::component_of(code)).filter(|component| page::who_gives(component).is_none());
    let nameless: std::collections::BTreeSet<&str> = nameless.collect();
    findings.extend(nameless.into_iter().map(|component| format!("say in xtask/src/errors/page.rs who gives the codes {component}/…")));
    let path = sources::root().join(PAGE);
    if fs::read_to_string(path).unwrap_or_default() != page::render(&catalog) {
        findings.push(format!("{PAGE} is out of date: run `cargo xtask docs`"));
    }
    Ok(findings)
}
