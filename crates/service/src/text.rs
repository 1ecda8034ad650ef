//! Text of another trust domain, made fit for a log, a database or a terminal.

/// Whether a character can steer a terminal, or make a line read as something else.
#[must_use]
pub fn is_hostile(character: char) -> bool {
    character.is_control() || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` on one line: hostile characters are replaced by spaces.
#[must_use]
pub fn one_line(text: &str) -> String {
    text.chars().map(|character| if is_hostile(character) { ' ' } else { character }).collect()
}

/// At most `max_bytes` of `text`, cut at a character, hostile characters replaced by spaces.
#[must_use]
pub fn clean(text: &str, max_bytes: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max_bytes));
    for character in text.chars() {
        if out.len() + character.len_utf8() > max_bytes {
            break;
        }
        out.push(if is_hostile(character) { ' ' } else { character });
    }
    out
}

/// `line` without ANSI escape sequences and other control characters.
#[must_use]
pub fn strip_escapes(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '\u{1b}' => match rest.next() {
                Some('[') => while rest.next().is_some_and(|next| !('@'..='~').contains(&next)) {},
                Some(']') => while rest.next().is_some_and(|next| next != '\u{7}' && next != '\u{1b}') {},
                Some('(' | ')' | '#') => drop(rest.next()),
                _ => {}
            },
            '\t' | '\n' => out.push(character),
            _ if character.is_control() => {}
            _ => out.push(character),
        }
    }
    out
}

/// `text` as HTML text or the value of a quoted attribute.
#[must_use]
pub fn escape_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_becomes_text() {
        assert_eq!(escape_html("<script>'\"&"), "&lt;script&gt;&#39;&quot;&amp;");
    }

    #[test]
    fn cuts_at_a_character_and_removes_controls() {
        assert_eq!(clean("a\u{1b}[31mb\nc", 100), "a [31mb c");
        assert_eq!(clean("ééé", 5), "éé");
        assert_eq!(clean("a\u{202e}b", 9), "a b");
        assert_eq!(one_line("a\u{1b}[2Jb\nc"), "a [2Jb c");
    }

    #[test]
    fn removes_escape_sequences() {
        assert_eq!(strip_escapes("\u{1b}[1;31mred\u{1b}[0m\r\n\u{1b}]0;title\u{7}x\u{1b}(B\u{1b}"), "red\nx");
    }
}
