//! Globs over paths of the root file system.

/// Whether the absolute `path` fits `pattern`. `*` matches within a component, `**` matches any number of characters,
/// slashes included. A pattern also covers everything below what it names.
pub(super) fn covers(pattern: &str, path: &str) -> bool {
    matches(pattern.as_bytes(), path.as_bytes())
}

fn matches(pattern: &[u8], path: &[u8]) -> bool {
    match pattern {
        [] => path.is_empty() || path.starts_with(b"/"),
        [b'*', b'*', rest @ ..] => (0..=path.len()).any(|skip| path.get(skip..).is_some_and(|tail| matches(rest, tail))),
        [b'*', rest @ ..] => {
            let end = path.iter().position(|byte| *byte == b'/').unwrap_or(path.len());
            (0..=end).any(|skip| path.get(skip..).is_some_and(|tail| matches(rest, tail)))
        }
        [first, rest @ ..] => path.first() == Some(first) && path.get(1..).is_some_and(|tail| matches(rest, tail)),
    }
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn a_pattern_covers_what_is_below_it() {
        assert!(covers("/usr/share/doc", "/usr/share/doc/bash/copyright"));
        assert!(covers("/usr/share/doc", "/usr/share/doc"));
        assert!(!covers("/usr/share/doc", "/usr/share/docker"));
    }

    #[test]
    fn one_star_stays_in_its_component() {
        assert!(covers("/usr/bin/perl*", "/usr/bin/perl5.40"));
        assert!(!covers("/usr/*/perl", "/usr/lib/x/perl"));
        assert!(covers("/usr/**/perl", "/usr/lib/x/perl"));
        assert!(covers("/etc/*-", "/etc/passwd-"));
        assert!(!covers("/etc/*-", "/etc/passwd"));
    }
}
