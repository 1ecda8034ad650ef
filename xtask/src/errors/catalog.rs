//! Reading codes, causes and fixes out of the sources.

use std::collections::{BTreeMap, BTreeSet};

use syn::{
    Expr, ExprLit, Fields, ImplItem, ItemConst, ItemEnum, ItemImpl, ItemMod, ItemStruct, Lit, Pat, Variant,
    visit::{self, Visit},
};

use super::template::{Variables, error_text, texts};
use crate::sources::{SourceFile, first_words, is_test_only};

/// Codes of the transport belong to whoever calls or is called.
const TRANSPORT: &str = "rpc/";

/// One way in which a code is given.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Occasion {
    /// Folder of the package that gives it.
    pub(crate) package: String,
    /// Texts of the cause; empty where the cause is a peer's.
    pub(crate) causes: Vec<String>,
    /// Texts of the fix.
    pub(crate) fixes: Vec<String>,
    /// The fix is made elsewhere, from another error.
    pub(crate) has_foreign_fix: bool,
    /// Where it is in the sources, for findings.
    pub(crate) place: String,
}

/// Every code with its occasions.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub(crate) codes: BTreeMap<String, BTreeSet<Occasion>>,
    /// Codes without variants, fixes without texts and the like.
    defects: Vec<String>,
}

impl Catalog {
    pub(crate) fn of(files: &[SourceFile]) -> Self {
        let mut constants = Constants::default();
        for file in files {
            constants.visit_file(&file.syntax);
        }
        let mut catalog = Self::default();
        for file in files {
            let mut reader =
                Reader { file, constants: &constants.0, types: Types::default(), variables: Variables::new(), catalog: &mut catalog };
            reader.types.visit_file(&file.syntax);
            reader.visit_file(&file.syntax);
        }
        catalog
    }

    /// Every breach of the law about errors. `shared`: codes that several packages may give.
    pub(crate) fn findings(&self, shared: &[&str]) -> Vec<String> {
        let mut findings = self.defects.clone();
        for (code, occasions) in &self.codes {
            let packages: BTreeSet<&str> = occasions.iter().map(|occasion| occasion.package.as_str()).collect();
            if packages.len() > 1 && !code.starts_with(TRANSPORT) && !shared.contains(&code.as_str()) {
                findings.push(format!("code {code} is given by {}: one of them must choose another", join(packages)));
            }
            for occasion in occasions {
                let is_empty = |text: &String| text.trim().is_empty();
                if !occasion.has_foreign_fix && (occasion.fixes.is_empty() || occasion.fixes.iter().any(is_empty)) {
                    findings.push(format!("{}: code {code} has no fix", occasion.place));
                }
                for text in &occasion.fixes {
                    findings.extend(wording(text).map(|fault| format!("{}: fix of {code} {fault}: {text:?}", occasion.place)));
                }
                for text in &occasion.causes {
                    findings.extend(wording(text).map(|fault| format!("{}: cause of {code} {fault}: {text:?}", occasion.place)));
                }
            }
        }
        findings
    }

    fn add(&mut self, code: &str, occasion: Occasion) {
        self.codes.entry(code.to_owned()).or_default().insert(occasion);
    }
}

fn join<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().collect::<Vec<_>>().join(" and ")
}

/// What is wrong with a fragment of a sentence.
fn wording(text: &str) -> Option<&'static str> {
    let text = text.trim();
    let mut letters = text.chars();
    let is_capitalised = letters.next().is_some_and(char::is_uppercase) && letters.next().is_some_and(char::is_lowercase);
    // Words that the wire fixes.
    let is_fixed = ["Service not found", "Boot denied", "Unsupported API version", "Report data is too long"]
        .iter()
        .any(|fixed| text.starts_with(fixed));
    match text {
        _ if is_fixed => None,
        _ if text.ends_with('.') => Some("ends with a period"),
        _ if is_capitalised => Some("begins with a capital"),
        _ if text.contains("failed to ") => Some("says \"failed to\""),
        _ if text.contains("<source>") => Some("repeats its source"),
        _ => None,
    }
}

fn is_code(text: &str) -> bool {
    let plain =
        |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    text.split_once('/').is_some_and(|(component, name)| plain(component) && plain(name))
}

/// `const NAME: &str = "component/name"`, by name.
#[derive(Default)]
struct Constants(BTreeMap<String, String>);

impl Constants {
    fn take(&mut self, name: &syn::Ident, value: &Expr) {
        if let Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) = value
            && is_code(&text.value())
        {
            self.0.insert(name.to_string(), text.value());
        }
    }
}

impl<'ast> Visit<'ast> for Constants {
    fn visit_item_const(&mut self, item: &'ast ItemConst) {
        self.take(&item.ident, &item.expr);
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.take(&item.ident, &item.expr);
    }
}

/// Error types of a file: variants with their words. A struct is a type with one nameless variant.
#[derive(Default)]
struct Types(BTreeMap<String, Vec<(String, String)>>);

fn words(attributes: &[syn::Attribute]) -> String {
    let error = attributes.iter().find(|attribute| attribute.path().is_ident("error"));
    match error.and_then(error_text) {
        Some(text) => text,
        None => {
            let doc = first_words(attributes);
            let mut letters = doc.trim_end_matches('.').chars();
            letters.next().map_or(String::new(), |first| first.to_lowercase().chain(letters).collect())
        }
    }
}

impl<'ast> Visit<'ast> for Types {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !is_test_only(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_enum(&mut self, item: &'ast ItemEnum) {
        let variant = |variant: &Variant| (variant.ident.to_string(), words(&variant.attrs));
        self.0.insert(item.ident.to_string(), item.variants.iter().map(variant).collect());
    }

    fn visit_item_struct(&mut self, item: &'ast ItemStruct) {
        if !matches!(item.fields, Fields::Unit) {
            self.0.insert(item.ident.to_string(), vec![(String::new(), words(&item.attrs))]);
        }
    }
}

/// Walks one file.
struct Reader<'a> {
    file: &'a SourceFile,
    constants: &'a BTreeMap<String, String>,
    types: Types,
    /// Those of the function that is being read.
    variables: Variables,
    catalog: &'a mut Catalog,
}

/// What a method says for some patterns.
struct Arm {
    /// Names at the end of the patterns' paths; empty means any.
    names: Vec<String>,
    /// `code()` or `fix()` of another error.
    is_foreign: bool,
    texts: Vec<String>,
}

impl Reader<'_> {
    fn code_of(&self, expression: &Expr) -> Option<String> {
        match expression {
            Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value()).filter(|text| is_code(text)),
            Expr::Path(path) => self.constants.get(&path.path.segments.last()?.ident.to_string()).cloned(),
            _ => None,
        }
    }

    fn arms(&self, item: &ItemImpl, method: &str) -> Vec<Arm> {
        let body = item.items.iter().find_map(|item| match item {
            ImplItem::Fn(function) if function.sig.ident == method => Some(&function.block),
            _ => None,
        });
        let Some(syn::Stmt::Expr(expression, _)) = body.and_then(|block| block.stmts.last()) else { return Vec::new() };
        let arm = |names, body: &Expr| {
            let texts = match self.code_of(body) {
                Some(code) => vec![code],
                None => texts(body, &Variables::new()),
            };
            Arm { names, is_foreign: texts.is_empty(), texts }
        };
        match outermost_match(expression) {
            Some(choice) => choice.arms.iter().map(|case| arm(names_of(&case.pat), &case.body)).collect(),
            None => vec![arm(Vec::new(), expression)],
        }
    }

    fn read_impl(&mut self, item: &ItemImpl) {
        let syn::Type::Path(of) = &*item.self_ty else { return };
        let Some(name) = of.path.segments.last().map(|segment| segment.ident.to_string()) else { return };
        let (codes, fixes) = (self.arms(item, "code"), self.arms(item, "fix"));
        let place = format!("{} {name}", self.file.path);
        let variants = self.types.0.get(&name).cloned().unwrap_or_default();
        if variants.is_empty() {
            self.catalog.defects.push(format!("{place}: the type is not beside its UserFacing"));
        }
        let is_by_variant =
            |arms: &[Arm]| arms.iter().flat_map(|arm| &arm.names).any(|name| variants.iter().any(|(known, _)| known == name));
        let codes_by_variant = is_by_variant(&codes);
        for code in codes.iter().filter(|code| !code.is_foreign) {
            for text in code.texts.iter().filter(|text| is_code(text)) {
                let is_ours = |variant: &&(String, String)| {
                    !codes_by_variant || first_match(&codes, &variant.0).is_some_and(|arm| std::ptr::eq(arm, code))
                };
                let ours: Vec<&(String, String)> = variants.iter().filter(is_ours).collect();
                let mut said: Vec<&Arm> = if is_by_variant(&fixes) {
                    ours.iter().filter_map(|(variant, _)| first_match(&fixes, variant)).collect()
                } else {
                    first_match(&fixes, text).into_iter().collect()
                };
                // A code that is chosen by something else than the variant: every fix may belong to it.
                if said.is_empty() {
                    said = fixes.iter().collect();
                }
                let mut causes: Vec<String> = ours.iter().map(|(_, words)| words.clone()).filter(|words| !words.is_empty()).collect();
                causes.dedup();
                let mut occasion = Occasion {
                    package: self.file.package.clone(),
                    causes,
                    fixes: said.iter().flat_map(|arm| arm.texts.clone()).collect(),
                    has_foreign_fix: said.iter().any(|arm| arm.is_foreign),
                    place: place.clone(),
                };
                occasion.fixes.dedup();
                self.catalog.add(text, occasion);
            }
        }
    }
}

/// The arm that a variant or code takes: the first that names it or names nothing.
fn first_match<'a>(arms: &'a [Arm], name: &str) -> Option<&'a Arm> {
    arms.iter().find(|arm| arm.names.is_empty() || arm.names.iter().any(|known| known == name))
}

fn outermost_match(expression: &Expr) -> Option<&syn::ExprMatch> {
    match expression {
        Expr::Match(choice) => Some(choice),
        Expr::MethodCall(call) => outermost_match(&call.receiver),
        Expr::Paren(inner) => outermost_match(&inner.expr),
        _ => None,
    }
}

/// Variants and texts that a pattern names.
fn names_of(pattern: &Pat) -> Vec<String> {
    let last = |path: &syn::Path| path.segments.last().map(|segment| segment.ident.to_string()).into_iter().collect();
    match pattern {
        Pat::Or(any) => any.cases.iter().flat_map(names_of).collect(),
        Pat::Path(path) => last(&path.path),
        Pat::Struct(fields) => last(&fields.path),
        Pat::TupleStruct(fields) => last(&fields.path),
        Pat::Lit(ExprLit { lit: Lit::Str(text), .. }) => vec![text.value()],
        Pat::Ident(name) if name.ident.to_string().starts_with(char::is_uppercase) => vec![name.ident.to_string()],
        _ => Vec::new(),
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !is_test_only(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
        let is_user_facing =
            item.trait_.as_ref().and_then(|(_, path, _)| path.segments.last()).is_some_and(|segment| segment.ident == "UserFacing");
        if is_user_facing {
            self.read_impl(item);
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        let outer = std::mem::take(&mut self.variables);
        visit::visit_item_fn(self, item);
        self.variables = outer;
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        let outer = std::mem::take(&mut self.variables);
        visit::visit_impl_item_fn(self, item);
        self.variables = outer;
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        visit::visit_local(self, local);
        if let (Pat::Ident(name), Some(init)) = (&local.pat, &local.init) {
            let value = texts(&init.expr, &self.variables);
            self.variables.insert(name.ident.to_string(), value);
        }
    }

    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        let mut arguments = call.args.iter();
        if let (Some(first), Some(cause), Some(fix), None) = (arguments.next(), arguments.next(), arguments.next(), arguments.next())
            && let Some(code) = self.code_of(first)
        {
            let (causes, fixes) = (texts(cause, &self.variables), texts(fix, &self.variables));
            let place = self.file.path.clone();
            let has_foreign_fix = fixes.is_empty();
            self.catalog.add(&code, Occasion { package: self.file.package.clone(), causes, fixes, has_foreign_fix, place });
        }
        visit::visit_expr_call(self, call);
    }
}

#[cfg(test)]
#[path = "catalog/tests.rs"]
mod tests;
