//! Environment files: `NAME=value` lines.

use std::path::Path;

use dstack_key_hierarchy::{EnvVar, is_valid_env_name};
use zeroize::Zeroizing;

use crate::failure::{Failure, Outcome};

/// Largest file that is read; the sealed form has its own limit.
const MAX_BYTES: u64 = 2 << 20;

/// Reads a file. A line with a name alone takes the value from `inherit`.
///
/// Errors: unreadable, or a line that is not an assignment, with its number and without its value.
pub(crate) fn read(path: &Path, inherit: &dyn Fn(&str) -> Option<String>) -> Outcome<Vec<EnvVar>> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::usage("env/not-found", format!("there is no {}", path.display()), "name the environment file with -e FILE")
        }
        _ => Failure::io("reading", path, &error),
    };
    if std::fs::metadata(path).map_err(failed)?.len() > MAX_BYTES {
        return Err(Failure::new(
            "env/too-large",
            format!("{} has more than 2 MiB", path.display()),
            "pass files another way; this is for secrets",
        ));
    }
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(failed)?);
    parse(&text, path, inherit)
}

fn parse(text: &str, path: &Path, inherit: &dyn Fn(&str) -> Option<String>) -> Outcome<Vec<EnvVar>> {
    let mut vars: Vec<EnvVar> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let fail = |what: &str, fix: &str| Failure::new("env/malformed", format!("{}:{}: {what}", path.display(), number + 1), fix);
        let line = line.trim();
        let line = line.strip_prefix("export ").map_or(line, str::trim_start);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once('=').map_or((line, None), |(name, value)| (name.trim_end(), Some(value.trim())));
        if !is_valid_env_name(name) {
            return Err(fail("this is not a `NAME=value` line", "write NAME=value with a name of letters, digits and _"));
        }
        let value = match value {
            Some(value) => unquote(value).ok_or_else(|| {
                fail(
                    &format!("the value of {name} has a quote without its end"),
                    "close the quote on the same line; \\n makes a line break in double quotes",
                )
            })?,
            None => Zeroizing::new(
                inherit(name).ok_or_else(|| fail(&format!("{name} has no value here and none in the environment"), "write NAME=value"))?,
            ),
        };
        // The last line wins, as in a shell.
        vars.retain(|var| var.key != name);
        vars.push(EnvVar { key: name.to_owned(), value });
    }
    Ok(vars)
}

/// Removes quotes, or a comment after an unquoted value.
fn unquote(value: &str) -> Option<Zeroizing<String>> {
    let mut result = Zeroizing::new(String::with_capacity(value.len()));
    match value.chars().next() {
        Some('\'') => {
            let (inside, rest) = value.get(1..)?.split_once('\'')?;
            is_tail(rest).then(|| result.push_str(inside))?;
        }
        Some('"') => {
            let mut characters = value.get(1..)?.chars();
            loop {
                match characters.next()? {
                    '"' => break,
                    '\\' => match characters.next()? {
                        'n' => result.push('\n'),
                        'r' => result.push('\r'),
                        't' => result.push('\t'),
                        c @ ('"' | '\\' | '$') => result.push(c),
                        c => {
                            result.push('\\');
                            result.push(c);
                        }
                    },
                    c => result.push(c),
                }
            }
            is_tail(characters.as_str()).then_some(())?;
        }
        _ => result.push_str(value.split(" #").next().unwrap_or_default().trim_end()),
    }
    Some(result)
}

/// What may follow a closing quote.
fn is_tail(rest: &str) -> bool {
    let rest = rest.trim_start();
    rest.is_empty() || rest.starts_with('#')
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Outcome<Vec<(String, String)>> {
        let inherit = |name: &str| (name == "FROM_SHELL").then(|| "yes".to_owned());
        let vars = parse(text, Path::new(".env"), &inherit)?;
        Ok(vars.into_iter().map(|var| (var.key, var.value.to_string())).collect())
    }

    #[test]
    fn reads_quotes_comments_exports_and_inherited_names() {
        let text = "# c\nA=1\nexport B = two words # c\nC='a#b $x'\nD=\"l1\\nl2 \\\"q\\\"\" # c\nE=\nFROM_SHELL\nA=2\nF=a=b\n";

        let expected =
            [("B", "two words"), ("C", "a#b $x"), ("D", "l1\nl2 \"q\""), ("E", ""), ("FROM_SHELL", "yes"), ("A", "2"), ("F", "a=b")];
        assert_eq!(parsed(text).unwrap(), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn errors_name_the_line_and_never_the_value() {
        for (text, line) in [("A=1\n1B=secret\n", 2), ("K=\"secret\n", 1), ("K='secret' x\n", 1), ("\n\nMISSING\n", 3)] {
            let failure = parsed(text).unwrap_err();

            let printed = failure.report.for_program("dstack").to_string();
            assert!(printed.contains(&format!(".env:{line}:")), "{printed}");
            assert!(!printed.contains("secret"), "{printed}");
        }
    }
}
