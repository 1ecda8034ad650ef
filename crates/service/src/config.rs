//! Configuration files: TOML at an explicit path.

use std::path::{Path, PathBuf};

use dstack_api::UserFacing;
use serde::de::DeserializeOwned;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// The parser's words.
        message: String,
    },
}

impl UserFacing for ConfigError {
    fn code(&self) -> &'static str {
        match self {
            Self::Read { .. } => "config/unreadable",
            Self::Parse { .. } => "config/invalid",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Read { path, .. } => format!("check that {} exists and that this user may read it", path.display()),
            Self::Parse { path, line, .. } => {
                format!("correct line {line} of {}; the example file beside the program's documentation shows every key", path.display())
            }
        }
    }
}

/// Reads `path` as TOML. `T` should be `deny_unknown_fields`.
///
/// Errors: unreadable, or invalid with its position.
pub fn load<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T, ConfigError> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(&text, path)
}

/// Reads `text`, which came from `path`.
///
/// Errors: invalid with its position.
pub fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start).min(text.len());
        let before = text.get(..start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        ConfigError::Parse { path: path.to_owned(), line, column, message: error.message().to_owned() }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only parsed")]
    struct Example {
        port: u16,
    }

    #[test]
    fn error_names_file_line_and_column() {
        let error = parse::<Example>("port = 1\nprot = 2\n", Path::new("/etc/x.toml")).unwrap_err();

        assert!(error.to_string().starts_with("/etc/x.toml:2:1: unknown field `prot`"), "{error}");
        assert_eq!(error.code(), "config/invalid");
    }

    #[test]
    fn error_of_a_value_points_at_the_value() {
        let error = parse::<Example>("port = 70000\n", Path::new("x.toml")).unwrap_err();

        assert!(error.to_string().starts_with("x.toml:1:8:"), "{error}");
    }

    #[test]
    fn missing_file_is_named() {
        let error = load::<Example>("/nonexistent/x.toml").unwrap_err();

        assert_eq!(error.to_string(), "reading /nonexistent/x.toml");
        assert!(error.fix().contains("/nonexistent/x.toml"));
    }
}
