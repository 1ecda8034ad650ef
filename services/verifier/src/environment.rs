//! Configuration keys from the environment: `DSTACK_VERIFIER_PORT=8081`, `DSTACK_VERIFIER_DANGER__SIMULATED_ROOT=/path`.

use toml::{Table, Value};

/// Start of a variable that is meant for us.
pub(crate) const PREFIX: &str = "DSTACK_VERIFIER_";

/// A variable that cannot be a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("environment variable {name}: {reason}")]
pub(crate) struct VariableError {
    pub(crate) name: String,
    pub(crate) reason: String,
}

/// Puts `variables` over `table`. `__` separates tables, letters of a name are lower-cased. A value is a number or a truth value where it
/// reads as one, else text; whether the key exists is the file's own check.
pub(crate) fn overlay(table: &mut Table, variables: impl IntoIterator<Item = (String, String)>) -> Result<Vec<String>, VariableError> {
    let mut used = Vec::new();
    for (name, text) in variables {
        let Some(key) = name.strip_prefix(PREFIX) else { continue };
        let refused = |reason: &str| VariableError { name: name.clone(), reason: reason.to_owned() };
        let key = key.to_ascii_lowercase();
        let parts: Vec<&str> = key.split("__").collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(refused("it names no key"));
        }
        let (last, folders) = parts.split_last().ok_or_else(|| refused("it names no key"))?;
        let mut place = &mut *table;
        for folder in folders {
            let entry = place.entry((*folder).to_owned()).or_insert_with(|| Value::Table(Table::new()));
            place = entry.as_table_mut().ok_or_else(|| refused("a part of it is a value, not a table"))?;
        }
        place.insert((*last).to_owned(), value_of(&text));
        used.push(name);
    }
    Ok(used)
}

fn value_of(text: &str) -> Value {
    if let Ok(number) = text.parse() {
        return Value::Integer(number);
    }
    match text {
        "true" => Value::Boolean(true),
        "false" => Value::Boolean(false),
        text => Value::String(text.to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    fn overlaid(start: &str, variables: &[(&str, &str)]) -> Result<Table, VariableError> {
        let mut table = toml::from_str(start).unwrap();
        overlay(&mut table, variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))?;
        Ok(table)
    }

    #[test]
    fn variables_win_over_the_file_and_reach_into_tables() {
        let table = overlaid(
            "port = 1\n",
            &[("DSTACK_VERIFIER_PORT", "2"), ("DSTACK_VERIFIER_DANGER__SIMULATED_ROOT", "/r"), ("PATH", "x"), ("DSTACK_LOG", "y")],
        );

        assert_eq!(table.unwrap(), toml::from_str("port = 2\n[danger]\nsimulated_root = \"/r\"\n").unwrap());
    }

    #[test]
    fn names_that_cannot_be_keys_are_refused() {
        for name in ["DSTACK_VERIFIER_", "DSTACK_VERIFIER_A__", "DSTACK_VERIFIER_PORT__X"] {
            assert_eq!(overlaid("port = 1\n", &[(name, "1")]).unwrap_err().name, name);
        }
    }
}
