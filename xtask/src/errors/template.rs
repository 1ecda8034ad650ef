//! The text that an expression makes, with `<name>` where a value goes.

use std::collections::BTreeMap;

use syn::{Expr, ExprLit, Lit, Macro, Token, parse::Parser as _, punctuated::Punctuated};

/// Texts of the variables that are known where an expression stands.
pub(crate) type Variables = BTreeMap<String, Vec<String>>;

/// Every text that `expression` can give. Empty if it comes from elsewhere.
pub(crate) fn texts(expression: &Expr, known: &Variables) -> Vec<String> {
    let texts = |expression: &Expr| texts(expression, known);
    match expression {
        Expr::Path(path) => path.path.get_ident().and_then(|name| known.get(&name.to_string())).cloned().unwrap_or_default(),
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => vec![text.value()],
        Expr::MethodCall(call) if matches!(call.method.to_string().as_str(), "unwrap_or_else" | "unwrap_or" | "map_or" | "map_or_else") => {
            call.args.iter().flat_map(texts).collect()
        }
        Expr::MethodCall(call) => texts(&call.receiver),
        Expr::Macro(makro) if makro.mac.path.is_ident("format") => format_text(&makro.mac).into_iter().collect(),
        Expr::Reference(inner) => texts(&inner.expr),
        Expr::Paren(inner) => texts(&inner.expr),
        Expr::Closure(closure) => texts(&closure.body),
        Expr::Call(call) => call.args.iter().flat_map(texts).collect(),
        Expr::Block(block) => last_of(&block.block, known),
        Expr::If(choice) => {
            let mut found = last_of(&choice.then_branch, known);
            found.extend(choice.else_branch.iter().flat_map(|(_, other)| texts(other)));
            found
        }
        Expr::Match(choice) => choice.arms.iter().flat_map(|arm| texts(&arm.body)).collect(),
        _ => Vec::new(),
    }
}

fn last_of(block: &syn::Block, known: &Variables) -> Vec<String> {
    match block.stmts.last() {
        Some(syn::Stmt::Expr(expression, _)) => texts(expression, known),
        Some(syn::Stmt::Macro(statement)) if statement.mac.path.is_ident("format") => format_text(&statement.mac).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// The text of a `format!`-like macro.
fn format_text(makro: &Macro) -> Option<String> {
    let arguments = Punctuated::<Expr, Token![,]>::parse_terminated.parse2(makro.tokens.clone()).ok()?;
    let mut arguments = arguments.iter();
    let Some(Expr::Lit(ExprLit { lit: Lit::Str(text), .. })) = arguments.next() else { return None };
    let names: Vec<String> = arguments.filter(|argument| !matches!(argument, Expr::Assign(_))).map(name_of).collect();
    Some(fill(&text.value(), &names))
}

/// The text of `#[error("…", arguments)]`; `None` for a transparent one.
pub(crate) fn error_text(attribute: &syn::Attribute) -> Option<String> {
    let syn::Meta::List(list) = &attribute.meta else { return None };
    let arguments = Punctuated::<Expr, Token![,]>::parse_terminated.parse2(list.tokens.clone());
    let Ok(arguments) = arguments else {
        // thiserror's own short forms, such as `.0`, are not expressions; the text comes first all the same.
        let text = list.tokens.clone().into_iter().next()?;
        return syn::parse2::<syn::LitStr>(text.into()).ok().map(|text| fill(&text.value(), &[]));
    };
    let mut arguments = arguments.iter();
    match arguments.next() {
        Some(Expr::Lit(ExprLit { lit: Lit::Str(text), .. })) => Some(fill(&text.value(), &arguments.map(name_of).collect::<Vec<_>>())),
        _ => None,
    }
}

/// What a reader would call a value: the last word of the expression that gives it.
fn name_of(expression: &Expr) -> String {
    match expression {
        Expr::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string().to_lowercase()).unwrap_or_default(),
        Expr::Field(field) => match &field.member {
            syn::Member::Named(name) => name.to_string(),
            syn::Member::Unnamed(_) => name_of(&field.base),
        },
        Expr::MethodCall(call) => match name_of(&call.receiver) {
            name if name.is_empty() || name == "self" => call.method.to_string(),
            name => name,
        },
        Expr::Reference(inner) => name_of(&inner.expr),
        Expr::Call(call) => call.args.first().map(name_of).unwrap_or_default(),
        _ => String::new(),
    }
}

/// `{name:?}` and `{}` as `<name>`.
fn fill(text: &str, positional: &[String]) -> String {
    let mut names = positional.iter();
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, tail) = rest.split_at(at);
        out.push_str(before);
        if let Some(escaped) = tail.strip_prefix("{{").or_else(|| tail.strip_prefix("}}")) {
            out.push_str(&tail[..1]);
            rest = escaped;
            continue;
        }
        let end = tail.find('}').map_or(tail.len(), |end| end + 1);
        let (hole, after) = tail.split_at(end);
        let name = hole.trim_matches(['{', '}']).split(':').next().unwrap_or_default();
        let name = match name {
            "" => names.next().map_or("", String::as_str),
            number if number.bytes().all(|byte| byte.is_ascii_digit()) => "",
            named => named,
        };
        out.push_str(&if name.is_empty() { "<…>".to_owned() } else { format!("<{}>", name.replace('_', " ").to_lowercase()) });
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(expression: &str) -> Vec<String> {
        let known = Variables::from([("fix".to_owned(), vec!["known".to_owned()])]);
        texts(&syn::parse_str(expression).unwrap_or_else(|error| panic!("{expression}: {error}")), &known)
    }

    #[test]
    fn values_become_names() {
        assert_eq!(of(r#"format!("restore {} from {backup_dir:?}", path.display())"#), ["restore <path> from <backup dir>"]);
        assert_eq!(of(r#"format!("{{}} {0}")"#), ["{} <…>"]);
    }

    #[test]
    fn every_branch_is_a_text() {
        assert_eq!(of(r#"if a { "one".to_owned() } else { format!("{two}") }"#), ["one", "<two>"]);
        assert_eq!(of(r#"given.unwrap_or_else(|| "ask".to_owned())"#), ["ask"]);
        assert_eq!(of("error.fix()"), Vec::<String>::new());
        assert_eq!(of("fix.clone()"), ["known"]);
    }
}
