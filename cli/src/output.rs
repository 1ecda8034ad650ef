//! What goes to the terminal: results on stdout, progress and errors on stderr.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::failure::{Failure, Outcome};

/// How a piece of text is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// It went well.
    Good,
    /// Read this.
    Caution,
    /// It went wrong.
    Bad,
    /// A heading or a name.
    Strong,
    /// Less important.
    Quiet,
}

/// Writes text with or without colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Palette {
    /// Whether escape sequences are written.
    pub is_coloured: bool,
}

impl Palette {
    /// Never any colour.
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self { is_coloured: false };

    /// `text` in a tone.
    #[must_use]
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        if !self.is_coloured || text.is_empty() {
            return text.to_owned();
        }
        let style: Style = match tone {
            Tone::Good => AnsiColor::Green.on_default().bold(),
            Tone::Caution => AnsiColor::Yellow.on_default().bold(),
            Tone::Bad => AnsiColor::Red.on_default().bold(),
            Tone::Strong => Style::new().bold(),
            Tone::Quiet => Style::new().dimmed(),
        };
        format!("{style}{text}{style:#}")
    }
}

/// Where and in which form a command writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// Machine-readable results.
    pub is_json: bool,
    /// For stdout.
    pub palette: Palette,
    /// For stderr.
    pub error_palette: Palette,
    /// stderr is a terminal that can redraw lines.
    pub is_live: bool,
}

impl Output {
    /// Looks at the terminal and at `NO_COLOR`.
    #[must_use]
    pub(crate) fn detect(is_json: bool) -> Self {
        let wanted =
            std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && std::env::var("TERM").map_or(true, |term| term != "dumb");
        let (out, err) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        Self {
            is_json,
            palette: Palette { is_coloured: wanted && out && !is_json },
            error_palette: Palette { is_coloured: wanted && err },
            is_live: err && wanted && !is_json,
        }
    }

    /// Prints text that is a result.
    pub(crate) fn print(&self, text: &str) {
        // A reader that went away (a pager, head) is no error of ours.
        let _reader_gone = writeln!(io::stdout().lock(), "{text}");
    }

    /// Prints `value` as JSON where that is wanted, else the text of `human`.
    ///
    /// Errors: a value that JSON cannot express; none of ours is.
    pub(crate) fn result<T: Serialize>(&self, value: &T, human: impl FnOnce(Palette) -> String) -> Outcome {
        if self.is_json {
            let text = serde_json::to_string_pretty(value)
                .map_err(|error| Failure::new("cli/internal", error.to_string(), "report this defect"))?;
            self.print(&text);
        } else {
            let text = human(self.palette);
            if !text.is_empty() {
                self.print(text.trim_end_matches('\n'));
            }
        }
        Ok(())
    }

    /// Prints a remark for people; nothing in JSON mode.
    pub(crate) fn note(&self, text: &str) {
        if !self.is_json {
            let _reader_gone = writeln!(io::stderr().lock(), "{text}");
        }
    }

    /// Prints a warning.
    pub(crate) fn warn(&self, text: &str) {
        let _reader_gone = writeln!(io::stderr().lock(), "{} {text}", self.error_palette.paint(Tone::Caution, "warning:"));
    }

    /// Prints how a command failed.
    pub(crate) fn failure(&self, failure: &Failure) {
        let report = &failure.report;
        let text = if self.is_json {
            let error = serde_json::json!({ "code": report.code, "operation": report.operation, "cause": report.cause, "fix": report.fix });
            serde_json::json!({ "error": error }).to_string()
        } else {
            let text = report.for_program("dstack").to_string();
            let painted = format!("dstack: {}", self.error_palette.paint(Tone::Bad, "error:"));
            text.replacen("dstack: error:", &painted, 1)
        };
        let _reader_gone = writeln!(io::stderr().lock(), "{text}");
    }
}

/// Aligned columns; the last one is not padded.
#[must_use]
pub(crate) fn table(palette: Palette, head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, width) in cells.zip(&widths) {
            let padding = width.saturating_sub(cell.chars().count());
            let _never = write!(text, "{cell}{:padding$}  ", "");
        }
        text.trim_end().to_owned()
    };
    let mut text = palette.paint(Tone::Quiet, &line(&mut head.iter().copied()));
    for row in rows {
        text.push('\n');
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// `label` and value lines with aligned values.
#[must_use]
pub(crate) fn fields(palette: Palette, rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
    let lines = rows.iter().map(|(label, value)| {
        let label = format!("{label:width$}");
        format!("  {}  {value}", palette.paint(Tone::Quiet, &label))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Text of another trust domain for a terminal: no control characters, no line breaks, at most `limit` characters.
#[must_use]
pub(crate) fn printable(text: &str, limit: usize) -> String {
    let mut clean: String = dstack_service::text::one_line(text).chars().take(limit).collect();
    if text.chars().count() > limit {
        clean.push('…');
    }
    clean
}

/// `1234567` as `1.2 MB`.
#[must_use]
pub(crate) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let (mut tenths, mut unit) = (bytes.saturating_mul(10) / 1000, 0);
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths /= 1000;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS.get(unit).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_aligns_by_characters() {
        let text = table(Palette::PLAIN, &["NAME", "STATE"], &[vec!["hällo".into(), "x".into()], vec!["b".into(), "running".into()]]);

        assert_eq!(text, "NAME   STATE\nhällo  x\nb      running");
    }

    #[test]
    fn foreign_text_cannot_move_the_cursor() {
        assert_eq!(printable("a\x1b[2Jb\nc", 10), "a [2Jb c");
        assert_eq!(printable("abcdef", 3), "abc…");
    }

    #[test]
    fn bytes_are_readable() {
        assert_eq!(human_bytes(999), "999 B");
        assert_eq!(human_bytes(1500), "1.5 kB");
        assert_eq!(human_bytes(262_144_000), "262.1 MB");
    }

    #[test]
    fn colour_only_when_asked() {
        assert_eq!(Palette::PLAIN.paint(Tone::Bad, "x"), "x");
        assert!(Palette { is_coloured: true }.paint(Tone::Bad, "x").starts_with('\u{1b}'));
    }
}
