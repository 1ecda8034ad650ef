//! Our Rust sources, parsed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use syn::{Attribute, Meta};

/// One source file that ends up in a library or program of ours.
pub(crate) struct SourceFile {
    /// Path from the root of the repository.
    pub(crate) path: String,
    /// Folder of its package, such as `services/vmm`.
    pub(crate) package: String,
    pub(crate) syntax: syn::File,
}

/// Root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// Names of the files that git knows and that are there, from the root of the repository.
pub(crate) fn tracked() -> anyhow::Result<Vec<String>> {
    let listed = Command::new("git").args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root()).output();
    let text = String::from_utf8(listed.context("running git ls-files")?.stdout).context("a file name is not UTF-8")?;
    let mut names: Vec<String> =
        text.split('\0').filter(|name| !name.is_empty() && root().join(name).exists()).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// Sources of libraries and programs, tests left out.
pub(crate) fn production() -> anyhow::Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    for path in tracked()? {
        let Some((package, inner)) = path.split_once("/src/") else { continue };
        let is_ours = ["crates/", "services/", "cli"].iter().any(|area| package.starts_with(area));
        let is_test = inner == "tests.rs" || inner.ends_with("/tests.rs") || inner.starts_with("tests/") || inner.contains("/tests/");
        if !is_ours || is_test || !path.ends_with(".rs") {
            continue;
        }
        let text = fs::read_to_string(root().join(&path)).with_context(|| format!("reading {path}"))?;
        let syntax = syn::parse_file(&text).with_context(|| format!("parsing {path}"))?;
        files.push(SourceFile { package: package.to_owned(), path, syntax });
    }
    Ok(files)
}

/// Whether an item is compiled for tests only.
pub(crate) fn is_test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        Meta::Path(path) => path.is_ident("test"),
        Meta::NameValue(_) => false,
    })
}

/// The first paragraph of a doc comment.
pub(crate) fn first_words(attributes: &[Attribute]) -> String {
    let line = |attribute: &Attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value().trim().to_owned()),
            _ => None,
        },
        _ => None,
    };
    attributes.iter().filter_map(line).take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}
