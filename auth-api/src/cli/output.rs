//! Output of the commands of an operator: texts that are safe on a terminal, on one line each.

use std::io::Write;

use anyhow::{Context, Result};
use chrono::{DateTime, SecondsFormat, Utc};

use crate::domain::login::is_invisible_or_unassigned;

/// The action has been carried out, and its record is on standard error.
pub(super) const NOT_AUDITED: &str = "done, but not recorded in the file of AUDIT_LOG";

/// Escapes control and invisible characters, which the Python service accepted in logins, and all blanks but the space:
/// they could move a terminal's cursor, look like further lines, or make different logins look alike. A backslash that would
/// begin an escape sequence is escaped too, so that no two texts look alike.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        if character.is_control()
            || is_invisible_or_unassigned(character)
            || is_other_blank(character)
        {
            escaped.extend(character.escape_default());
        } else if character == '\\' && unescape_character(rest.as_str()).is_some() {
            escaped.extend(character.escape_unicode());
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// Returns whether a character looks like a space, or like the end of a line, and is no space.
fn is_other_blank(character: char) -> bool {
    const BRAILLE_PATTERN_BLANK: char = '\u{2800}';
    character.is_whitespace() && character != ' ' || character == BRAILLE_PATTERN_BLANK
}

/// Reverts [`escape`]. Returns `None` if there is nothing to revert.
pub(super) fn unescape(text: &str) -> Option<String> {
    let mut parts = text.split('\\');
    let mut unescaped = parts.next()?.to_owned();
    for part in parts {
        let (character, rest) = unescape_character(part).unwrap_or(('\\', part));
        unescaped.push(character);
        unescaped.push_str(rest);
    }
    (unescaped != text).then_some(unescaped)
}

/// Returns the character of the escape sequence that `text` continues after its backslash, and the rest.
fn unescape_character(text: &str) -> Option<(char, &str)> {
    if let Some(rest) = text.strip_prefix("u{") {
        let (digits, rest) = rest.split_once('}')?;
        let character = u32::from_str_radix(digits, 16)
            .ok()
            .and_then(char::from_u32);
        return Some((character?, rest));
    }
    let mut characters = text.chars();
    let character = match characters.next()? {
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        _ => return None,
    };
    Some((character, characters.as_str()))
}

pub(super) fn format_time(time: Option<DateTime<Utc>>) -> String {
    time.map_or_else(
        || "never".to_owned(),
        |time| time.to_rfc3339_opts(SecondsFormat::Secs, true),
    )
}

pub(super) fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("writing to standard output")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_login_is_shown_on_one_line_without_control_characters() {
        let login = "O'Brien \u{1b}[2J\n999  admin\u{9b}1m \u{200b}\u{202e}";
        let escaped = escape(login);
        assert_eq!(
            escaped,
            "O'Brien \\u{1b}[2J\\n999  admin\\u{9b}1m \\u{200b}\\u{202e}"
        );
        assert_eq!(unescape(&escaped).as_deref(), Some(login));
    }

    #[test]
    fn blanks_other_than_the_space_are_told_from_it() {
        let blanks = "a \u{a0}\u{1680}\u{2003}\u{2028}\u{2029}\u{202f}\u{2800}\u{3000}b";
        let escaped = escape(blanks);
        assert!(escaped.is_ascii(), "{escaped}");
        assert_eq!(unescape(&escaped).as_deref(), Some(blanks));
    }

    #[test]
    fn what_is_no_escape_sequence_is_kept() {
        for text in [
            "alice",
            "a\\b",
            "a\\",
            "\\u{110000}",
            "\\u{1",
            "\\u{}",
            "\\\\",
        ] {
            assert_eq!(unescape(text), None, "{text}");
        }
        assert_eq!(unescape("\\x\\t").as_deref(), Some("\\x\t"));
    }

    #[test]
    fn a_text_that_looks_like_an_escape_sequence_is_told_from_what_it_stands_for() {
        assert_eq!(escape("bob\u{200b}"), "bob\\u{200b}");
        assert_eq!(escape("bob\\u{200b}"), "bob\\u{5c}u{200b}");
        assert_eq!(escape("a\\b"), "a\\b");
    }

    proptest! {
        #[test]
        fn whatever_is_escaped_can_be_reverted(text in r"([\\ut{}0-9a-f\n\x{200b}]|u\{)*") {
            let escaped = escape(&text);
            prop_assert_eq!(unescape(&escaped).unwrap_or(escaped), text);
        }
    }
}
