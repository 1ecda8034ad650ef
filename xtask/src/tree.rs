//! The law of the tree: file sizes, names, and nothing left over.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::Context as _;

use crate::sources;

/// No source file is longer.
const MAX_LINES: usize = 800;
/// No `main.rs` of a service is longer.
const MAX_MAIN_LINES: usize = 80;
const SOURCE: [&str; 6] = ["rs", "ts", "py", "go", "sol", "sh"];
const FORBIDDEN_MODULES: [&str; 6] = ["utils", "common", "helpers", "misc", "types", "manager"];
/// Its folders are named as cargo-fuzz wants them: after the targets, which are Rust names.
const FUZZ: &str = "tests/fuzz/";
const REQUIRED: [&str; 9] = [
    "README.md",
    "ARCHITECTURE.md",
    "SPECIFICATION.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
    "deny.toml",
    ".ci/run",
];

/// Every breach, one sentence each.
pub(crate) fn check() -> anyhow::Result<Vec<String>> {
    let tracked = sources::tracked()?;
    let files: BTreeSet<&str> = tracked.iter().map(String::as_str).collect();
    let mut findings: Vec<String> =
        REQUIRED.iter().filter(|name| !files.contains(**name)).map(|name| format!("{name} is missing")).collect();
    for name in &files {
        check_name(name, &mut findings);
        let extension = Path::new(name).extension().and_then(|ext| ext.to_str()).unwrap_or_default();
        if SOURCE.contains(&extension) && !name.contains("testdata/") && !name.starts_with("xtask/") {
            let source = fs::read_to_string(sources::root().join(name)).with_context(|| format!("reading {name}"))?;
            check_source(name, &source, &mut findings);
        }
    }
    Ok(findings)
}

fn check_name(name: &str, findings: &mut Vec<String>) {
    let path = Path::new(name);
    let folders: Vec<&str> = path.parent().into_iter().flat_map(Path::components).filter_map(|part| part.as_os_str().to_str()).collect();
    for folder in folders.iter().filter(|folder| FORBIDDEN_MODULES.contains(folder)) {
        findings.push(format!("{name}: a folder named {folder} says nothing"));
    }
    let is_named_otherwise = name.contains("testdata/") || name.contains("/src/") || name.contains("/tests/") || name.starts_with(FUZZ);
    for folder in folders.iter().filter(|_| !is_named_otherwise) {
        if folder.chars().any(|c| c.is_ascii_uppercase() || (c == '_' && !name.contains("/rootfs/"))) {
            findings.push(format!("{name}: folder {folder} is not kebab-case"));
        }
    }
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    if path.extension().is_some_and(|ext| ext == "rs") && FORBIDDEN_MODULES.contains(&stem) {
        findings.push(format!("{name}: a module named {stem} says nothing"));
    }
}

fn check_source(name: &str, source: &str, findings: &mut Vec<String>) {
    let lines = source.lines().count();
    let limit = if name.starts_with("services/") && name.ends_with("src/main.rs") { MAX_MAIN_LINES } else { MAX_LINES };
    if lines > limit {
        findings.push(format!("{name}: {lines} lines, at most {limit}"));
    }
    for (index, line) in source.lines().enumerate() {
        let number = index + 1;
        if ["todo!(", "unimplemented!(", "FIXME", "// XXX"].iter().any(|word| line.contains(word)) {
            findings.push(format!("{name}:{number}: a leftover"));
        }
        if line.contains("TODO") && !line.contains("TODO(#") {
            findings.push(format!("{name}:{number}: write TODO(#issue)"));
        }
        if line.contains("fn get_") && name.contains("/src/") && line.trim_start().starts_with("pub") {
            findings.push(format!("{name}:{number}: name a function by what it returns, without get_"));
        }
        if line.contains("#[ignore") {
            findings.push(format!("{name}:{number}: an ignored test proves nothing"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(name: &str, source: &str) -> Vec<String> {
        let mut findings = Vec::new();
        check_name(name, &mut findings);
        check_source(name, source, &mut findings);
        findings
    }

    #[test]
    fn names_that_say_nothing_are_found_as_files_and_as_folders() {
        for name in ["cli/src/utils.rs", "cli/src/utils/mod.rs", "crates/common/src/lib.rs", "cli/tests/helpers/mod.rs", "crates/Api/x.rs"]
        {
            assert_eq!(findings(name, "").len(), 1, "{name}");
        }
        assert_eq!(findings("crates/os-image/src/build/mod.rs", ""), Vec::<String>::new());
    }

    #[test]
    fn leftovers_and_lengths_are_found() {
        let long = "\n".repeat(MAX_LINES + 1);
        for source in ["todo!()", "// TODO later", "// FIXME", "#[ignore]", "pub fn get_name() {}", &long] {
            assert_eq!(findings("cli/src/lib.rs", source).len(), 1, "{source:.20}");
        }
        assert_eq!(findings("cli/src/lib.rs", "// TODO(#4): later\nfn name() {}"), Vec::<String>::new());
        assert_eq!(findings("services/vmm/src/main.rs", &"\n".repeat(MAX_MAIN_LINES + 1)).len(), 1);
    }
}
