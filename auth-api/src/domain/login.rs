//! The name that a person registers and logs in with.

use serde_json::{Value, json};
use unicode_normalization::UnicodeNormalization;

const MIN_CHARACTERS: usize = 3;
/// The width of the Python service's column.
const MAX_CHARACTERS: usize = 255;

/// A login in Unicode's form NFC, of at most 255 characters and without NUL. Upper and lower case differ.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Login(String);

/// Why a text may not be registered as a login. Its `Display` is what the client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidLogin {
    #[error("Login must be at least 3 characters long")]
    TooShort,
    #[error("Login must be at most 255 characters long")]
    TooLong,
    #[error("Login must not contain control characters")]
    ControlCharacter,
    #[error("Login must not begin or end with a blank")]
    OuterBlank,
}

impl Login {
    /// As JSON Schema, which knows no normal forms.
    pub(crate) fn schema() -> Value {
        json!({
            "type": "string",
            "format": "login",
            "minLength": MIN_CHARACTERS,
            "maxLength": MAX_CHARACTERS,
            "description": "No control characters, no blank at either end. Kept in Unicode's form NFC.",
        })
    }

    /// A login to be registered: 3 to 255 characters, no control characters, no blank at either end.
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
            return Err(InvalidLogin::OuterBlank);
        }
        Ok(Self(text))
    }

    /// A login that an account may have, among them those that the Python service let in under
    /// rules of its own. `None` where no account can have it.
    pub(crate) fn existing(text: &str) -> Option<Self> {
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
    fn what_may_be_registered() {
        for good in ["abc", "Ärger", "a b", "日本語", &"x".repeat(255)] {
            assert!(Login::new(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("ab", InvalidLogin::TooShort),
            ("", InvalidLogin::TooShort),
            ("a\0bc", InvalidLogin::ControlCharacter),
            ("a\u{85}bc", InvalidLogin::ControlCharacter),
            (" abc", InvalidLogin::OuterBlank),
            ("    ", InvalidLogin::OuterBlank),
            (&"x".repeat(256), InvalidLogin::TooLong),
        ] {
            assert_eq!(Login::new(bad), Err(why), "{bad:?}");
        }
    }

    #[test]
    fn two_spellings_of_one_text_are_one_login_and_cases_are_two() {
        assert_eq!(Login::new("A\u{308}rger"), Login::new("Ärger"));
        assert_ne!(Login::new("alice"), Login::new("Alice"));
    }
}
