//! The law of floors 0 and 1: no file, socket, process, thread, clock, environment or terminal. What they need comes in as arguments.

use syn::{
    ItemFn, ItemMod, ItemUse, UseTree,
    visit::{self, Visit},
};

use crate::sources::{self, SourceFile, is_test_only};

/// Paths that reach outside.
const FORBIDDEN: [&str; 12] = [
    "std::env",
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::io::stdin",
    "std::io::stdout",
    "std::io::stderr",
    "tokio",
];
const FORBIDDEN_MACROS: [&str; 5] = ["print", "println", "eprint", "eprintln", "thread_local"];

/// Every breach in the packages of these folders, one sentence each.
pub(crate) fn check(pure: &[String]) -> anyhow::Result<Vec<String>> {
    let files = sources::production()?;
    Ok(files.iter().filter(|file| pure.contains(&file.package)).flat_map(breaches).collect())
}

fn breaches(file: &SourceFile) -> Vec<String> {
    let mut reader = Reader { found: Vec::new() };
    reader.visit_file(&file.syntax);
    reader.found.sort();
    reader.found.dedup();
    reader.found.into_iter().map(|what| format!("{}: floors 0 and 1 do not use {what}", file.path)).collect()
}

struct Reader {
    found: Vec<String>,
}

impl Reader {
    fn judge(&mut self, path: &str) {
        let is_within = |forbidden: &&&str| path == **forbidden || path.starts_with(&format!("{forbidden}::"));
        self.found.extend(FORBIDDEN.iter().find(is_within).map(|forbidden| (*forbidden).to_owned()));
    }

    fn judge_tree(&mut self, prefix: &str, tree: &UseTree) {
        let join = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}::{name}") };
        match tree {
            UseTree::Path(path) => self.judge_tree(&join(&path.ident.to_string()), &path.tree),
            UseTree::Name(name) => self.judge(&join(&name.ident.to_string())),
            UseTree::Rename(name) => self.judge(&join(&name.ident.to_string())),
            UseTree::Glob(_) => self.judge(prefix),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.judge_tree(prefix, tree)),
        }
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !is_test_only(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast ItemFn) {
        if !is_test_only(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if !is_test_only(&item.attrs) {
            self.judge_tree("", &item.tree);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.judge(&names.join("::"));
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, makro: &'ast syn::Macro) {
        self.found.extend(FORBIDDEN_MACROS.iter().find(|name| makro.path.is_ident(name)).map(|name| format!("{name}!")));
        visit::visit_macro(self, makro);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let syntax = syn::parse_str(text).unwrap_or_else(|error| panic!("{error}"));
        breaches(&SourceFile { path: "lib.rs".to_owned(), package: String::new(), syntax })
    }

    #[test]
    fn what_reaches_outside_is_found_however_it_is_written() {
        for (text, what) in [
            ("use std::fs;", "std::fs"),
            ("use std::{collections::BTreeMap, time::{Duration, SystemTime}};", "std::time::SystemTime"),
            ("fn f() { std::env::var(\"HOME\"); }", "std::env"),
            ("use std::io::*; fn f() { std::io::stdout(); }", "std::io::stdout"),
            ("fn f() { println!(); }", "println!"),
        ] {
            assert_eq!(found(text), [format!("lib.rs: floors 0 and 1 do not use {what}")], "{text}");
        }
    }

    #[test]
    fn durations_readers_and_tests_may_be_used() {
        let text = "use std::{io::Read, time::Duration}; #[cfg(test)] mod tests { use std::fs; } #[test] fn t() { std::env::args(); }";
        assert_eq!(found(text), Vec::<String>::new());
    }
}
