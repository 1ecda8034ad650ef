//! `${NAME}` in compose files.

/// What a compose file takes from its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variable {
    /// Its name.
    pub name: String,
    /// Whether every use has a default.
    pub has_default: bool,
}

enum Part<'a> {
    Text(&'a str),
    Dollar,
    Variable { name: &'a str, default: Option<&'a str> },
}

/// Variables of `text` in order of first use. Lines that are comments do not count.
#[must_use]
pub(crate) fn variables(text: &str) -> Vec<Variable> {
    let mut found: Vec<Variable> = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        each_part(line, &mut |part| {
            if let Part::Variable { name, default } = part {
                match found.iter_mut().find(|variable| variable.name == name) {
                    Some(variable) => variable.has_default &= default.is_some(),
                    None => found.push(Variable { name: name.to_owned(), has_default: default.is_some() }),
                }
            }
        });
    }
    found
}

/// `text` with its variables replaced; unknown ones without default become nothing, as in docker compose.
#[must_use]
pub(crate) fn interpolate(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut result = String::new();
    each_part(text, &mut |part| match part {
        Part::Text(text) => result.push_str(text),
        Part::Dollar => result.push('$'),
        Part::Variable { name, default } => {
            let value = lookup(name).filter(|value| !value.is_empty()).or_else(|| default.map(str::to_owned));
            result.push_str(&value.unwrap_or_default());
        }
    });
    result
}

fn each_part<'a>(text: &'a str, take: &mut dyn FnMut(Part<'a>)) {
    let mut rest = text;
    while let Some(position) = rest.find('$') {
        let (before, from) = rest.split_at(position);
        take(Part::Text(before));
        let after = from.get(1..).unwrap_or_default();
        if let Some(escaped) = after.strip_prefix('$') {
            take(Part::Dollar);
            rest = escaped;
        } else if let Some((inside, tail)) = after.strip_prefix('{').and_then(|braced| braced.split_once('}')) {
            let name = leading_name(inside);
            let modifier = inside.get(name.len()..).unwrap_or_default();
            let default = modifier.strip_prefix(":-").or_else(|| modifier.strip_prefix('-'));
            if name.is_empty() {
                take(Part::Text(from.get(..1).unwrap_or_default()));
                rest = after;
            } else {
                take(Part::Variable { name, default });
                rest = tail;
            }
        } else {
            let name = leading_name(after);
            if name.is_empty() {
                take(Part::Dollar);
            } else {
                take(Part::Variable { name, default: None });
            }
            rest = after.get(name.len()..).unwrap_or_default();
        }
    }
    take(Part::Text(rest));
}

fn leading_name(text: &str) -> &str {
    let is_name = |(index, c): (usize, char)| c == '_' || c.is_ascii_alphabetic() || (index > 0 && c.is_ascii_digit());
    let length = text.char_indices().take_while(|pair| is_name(*pair)).count();
    text.get(..length).unwrap_or_default()
}
