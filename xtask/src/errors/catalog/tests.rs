use super::*;

const SOURCE: &str = r#"
    /// Why not.
    #[derive(Debug, thiserror::Error)]
    pub enum Broken {
        /// Gone.
        #[error("no VM {0}")]
        Gone(String),
        #[error(transparent)]
        Other(#[from] Other),
        #[error("write {}", path.display())]
        Write { path: PathBuf },
        #[error("read {}", path.display())]
        Read { path: PathBuf },
    }
    impl UserFacing for Broken {
        fn code(&self) -> &'static str {
            match self {
                Self::Gone(_) => "x/gone",
                Self::Other(error) => error.code(),
                Self::Write { .. } | Self::Read { .. } => "x/file",
            }
        }
        fn fix(&self) -> String {
            match self {
                Self::Gone(_) => "FIX".to_owned(),
                Self::Other(error) => error.fix(),
                Self::Write { path } => format!("free space at {}", path.display()),
                _ => "look".into(),
            }
        }
    }
    fn call() {
        Failure::new("x/call", format!("{name} is taken"), "choose another");
    }
    #[cfg(test)]
    mod tests { fn call() { Failure::new("x/test", "a", "b"); } }
"#;

fn catalog(source: &str) -> Catalog {
    let file = |package: &str, text: &str| SourceFile {
        path: format!("{package}/src/lib.rs"),
        package: package.to_owned(),
        syntax: syn::parse_str(text).unwrap_or_else(|error| panic!("{error}")),
    };
    Catalog::of(&[file("one", source), file("two", "fn f() { RpcError::new(\"y/z\", \"cause\", \"fix\") }")])
}

fn occasion<'a>(catalog: &'a Catalog, code: &str) -> &'a Occasion {
    catalog.codes.get(code).and_then(BTreeSet::first).unwrap_or_else(|| panic!("{code} is not in {catalog:#?}"))
}

#[test]
fn variants_and_calls_give_codes_with_cause_and_fix() {
    let catalog = catalog(SOURCE);

    assert_eq!(catalog.codes.keys().collect::<Vec<_>>(), ["x/call", "x/file", "x/gone", "y/z"]);
    assert_eq!(occasion(&catalog, "x/file").causes, ["write <path>", "read <path>"]);
    assert_eq!(occasion(&catalog, "x/file").fixes, ["free space at <path>", "look"]);
    assert_eq!(occasion(&catalog, "x/gone").causes, ["no VM <…>"]);
    assert_eq!(occasion(&catalog, "x/call").causes, ["<name> is taken"]);
    assert_eq!(catalog.findings(&[]), Vec::<String>::new());
}

#[test]
fn a_missing_fix_a_shared_code_and_bad_words_are_found() {
    let breaches = [
        (SOURCE.replace("\"FIX\"", "\"\""), "code x/gone has no fix"),
        (SOURCE.replace("x/call", "y/z"), "code y/z is given by one and two"),
        (SOURCE.replace("choose another", "Choose another"), "begins with a capital"),
        (SOURCE.replace("is taken", "is taken."), "ends with a period"),
        (SOURCE.replace("no VM", "failed to find"), "says \"failed to\""),
    ];
    for (source, finding) in breaches {
        let findings = catalog(&source).findings(&[]);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].contains(finding), "{findings:?}");
    }
    assert_eq!(catalog(&SOURCE.replace("x/call", "y/z")).findings(&["y/z"]), Vec::<String>::new());
}
