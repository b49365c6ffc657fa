//! Login names.

use serde_json::{Value, json};
use unicode_normalization::UnicodeNormalization;

const MIN_CHARACTERS: usize = 3;
/// The width of the Python service's column.
const MAX_CHARACTERS: usize = 255;

/// Login name in Unicode normalization form C, of at most 255 characters and without NUL. Case-sensitive.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Login(String);

/// Reason a text cannot be registered as a login. Its `Display` is the message for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidLogin {
    #[error("Login must be at least 3 characters long")]
    TooShort,
    #[error("Login must be at most 255 characters long")]
    TooLong,
    #[error("Login must not contain control characters")]
    ControlCharacter,
    #[error("Login must not begin or end with a blank")]
    SurroundingWhitespace,
}

impl Login {
    /// Returns the JSON Schema, which cannot express normalization forms.
    pub(crate) fn schema() -> Value {
        json!({
            "type": "string",
            "format": "login",
            "minLength": MIN_CHARACTERS,
            "maxLength": MAX_CHARACTERS,
            "description": "No control characters, no leading or trailing whitespace. Stored in Unicode normalization form C.",
        })
    }

    /// Parses a login to be registered: 3 to 255 characters, no control characters, no leading or
    /// trailing whitespace.
    ///
    /// # Errors
    /// Returns an error that names the first rule that `text` violates.
    pub(crate) fn new(text: &str) -> Result<Self, InvalidLogin> {
        let text: String = text.nfc().collect();
        let length = text.chars().count();
        if length < MIN_CHARACTERS {
            return Err(InvalidLogin::TooShort);
        }
        if length > MAX_CHARACTERS {
            return Err(InvalidLogin::TooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(InvalidLogin::ControlCharacter);
        }
        if text.trim() != text {
            return Err(InvalidLogin::SurroundingWhitespace);
        }
        Ok(Self(text))
    }

    /// Parses a login to look up. Accepts those that the Python service registered under its own
    /// rules; returns `None` if no account can have the login.
    pub(crate) fn for_lookup(text: &str) -> Option<Self> {
        let text: String = text.nfc().collect();
        (text.chars().count() <= MAX_CHARACTERS && !text.contains('\0')).then_some(Self(text))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_logins_within_the_rules_can_be_registered() {
        for valid in ["abc", "Ärger", "a b", "日本語", &"x".repeat(255)] {
            assert!(Login::new(valid).is_ok(), "{valid}");
        }
        for (invalid, reason) in [
            ("ab", InvalidLogin::TooShort),
            ("", InvalidLogin::TooShort),
            ("a\0bc", InvalidLogin::ControlCharacter),
            ("a\u{85}bc", InvalidLogin::ControlCharacter),
            (" abc", InvalidLogin::SurroundingWhitespace),
            ("    ", InvalidLogin::SurroundingWhitespace),
            (&"x".repeat(256), InvalidLogin::TooLong),
        ] {
            assert_eq!(Login::new(invalid), Err(reason), "{invalid:?}");
        }
    }

    #[test]
    fn logins_are_normalised_and_case_sensitive() {
        assert_eq!(Login::new("A\u{308}rger"), Login::new("Ärger"));
        assert_ne!(Login::new("alice"), Login::new("Alice"));
    }
}
