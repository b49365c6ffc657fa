//! Login names.
//!
//! The Python service stored logins in whatever Unicode normalization form clients sent (UAX #15), so a
//! stored [`Login`] may be in any. New ones are in form C, and a [`PresentedLogin`] finds both.

use serde_json::{Value, json};
use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

const MIN_CHARACTERS: usize = 3;
/// The width of the Python service's column.
const MAX_CHARACTERS: usize = 255;

/// Login name of an account, as it is stored. Case-sensitive.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Login(String);

/// Login name that a client or an operator presents to find an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PresentedLogin(String);

/// Reason a text cannot be registered as a login. Its `Display` is the message for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidLogin {
    #[error("Login must be at least 3 characters long")]
    TooShort,
    #[error("Login must be at most 255 characters long")]
    TooLong,
    #[error("Login must not contain control characters")]
    ControlCharacter,
    #[error("Login must not contain invisible or unassigned characters")]
    InvisibleCharacter,
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
            "description": "No control, invisible or unassigned characters, no leading or trailing whitespace. Stored in Unicode normalization form C.",
        })
    }

    /// Parses a login to be registered, in normalization form C: 3 to 255 characters, no control,
    /// invisible or unassigned characters, no leading or trailing whitespace.
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
        if text.chars().any(is_invisible_or_unassigned) {
            return Err(InvalidLogin::InvisibleCharacter);
        }
        if text.trim() != text {
            return Err(InvalidLogin::SurroundingWhitespace);
        }
        Ok(Self(text))
    }

    /// Accepts the text from a store as it is.
    pub(crate) fn from_stored(text: String) -> Self {
        Self(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the spellings of accounts with which the login cannot be registered.
    pub(crate) fn spellings(&self) -> Vec<String> {
        spellings(&self.0)
    }
}

impl PresentedLogin {
    /// Accepts what the Python service registered under its own rules. Returns `None` if no account can
    /// have the login.
    pub(crate) fn new(text: &str) -> Option<Self> {
        let is_possible = text.nfc().count() <= MAX_CHARACTERS && !text.contains('\0');
        is_possible.then(|| Self(text.to_owned()))
    }

    /// Returns the spellings that a stored login may have, the preferred one first: as presented, form C,
    /// form D. A stored login in none of these forms is found only as it is.
    pub(crate) fn spellings(&self) -> Vec<String> {
        spellings(&self.0)
    }

    /// Returns the form that all spellings have in common.
    pub(crate) fn normalized(&self) -> String {
        self.0.nfc().collect()
    }
}

impl From<&Login> for PresentedLogin {
    fn from(login: &Login) -> Self {
        Self(login.0.clone())
    }
}

fn spellings(text: &str) -> Vec<String> {
    let mut spellings = vec![text.to_owned()];
    for other in [text.nfc().collect(), text.nfd().collect()] {
        if !spellings.contains(&other) {
            spellings.push(other);
        }
    }
    spellings
}

/// Returns whether a character shows nothing of its own, changes the order in which others are shown, or
/// may be given any meaning by a later version of Unicode. With such characters, different logins look
/// alike.
pub(crate) fn is_invisible_or_unassigned(character: char) -> bool {
    is_default_ignorable(character)
        || matches!(
            character.general_category(),
            GeneralCategory::Unassigned | GeneralCategory::Format
        )
}

/// Property `Default_Ignorable_Code_Point` (Unicode 17, `DerivedCoreProperties.txt`): zero-width characters,
/// bidi controls, Hangul fillers, variation selectors, tags.
fn is_default_ignorable(character: char) -> bool {
    matches!(
        u32::from(character),
        0xAD | 0x34F
            | 0x61C
            | 0x115F..=0x1160
            | 0x17B4..=0x17B5
            | 0x180B..=0x180F
            | 0x200B..=0x200F
            | 0x202A..=0x202E
            | 0x2060..=0x206F
            | 0x3164
            | 0xFE00..=0xFE0F
            | 0xFEFF
            | 0xFFA0
            | 0xFFF0..=0xFFF8
            | 0x1BCA0..=0x1BCA3
            | 0x1D173..=0x1D17A
            | 0xE0000..=0xE0FFF
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_logins_within_the_rules_can_be_registered() {
        for valid in ["abc", "Ärger", "a b", "日本語", "😀😀😀", &"x".repeat(255)] {
            assert!(Login::new(valid).is_ok(), "{valid}");
        }
        for (invalid, reason) in [
            ("ab", InvalidLogin::TooShort),
            ("", InvalidLogin::TooShort),
            ("a\0bc", InvalidLogin::ControlCharacter),
            ("a\u{85}bc", InvalidLogin::ControlCharacter),
            ("ab\u{200b}c", InvalidLogin::InvisibleCharacter),
            ("ab\u{202e}c", InvalidLogin::InvisibleCharacter),
            ("ab\u{3164}c", InvalidLogin::InvisibleCharacter),
            ("ab\u{378}c", InvalidLogin::InvisibleCharacter),
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

    #[test]
    fn the_presented_spelling_is_preferred() {
        let spellings = |text| PresentedLogin::new(text).unwrap().spellings();
        assert_eq!(spellings("alice"), ["alice"]);
        assert_eq!(spellings("\u{e4}b"), ["\u{e4}b", "a\u{308}b"]);
        assert_eq!(spellings("a\u{308}b"), ["a\u{308}b", "\u{e4}b"]);
        let mixed = "a\u{308}\u{e4}";
        assert_eq!(
            spellings(mixed),
            [mixed, "\u{e4}\u{e4}", "a\u{308}a\u{308}"]
        );
        assert_eq!(PresentedLogin::new("a\0b"), None);
        assert_eq!(PresentedLogin::new(&"x".repeat(256)), None);
    }

    proptest! {
        /// A login that can be registered is found in each of its forms, and all of them are throttled as one.
        #[test]
        fn every_form_finds_a_registered_login(text in "\\PC{3,20}") {
            let Ok(login) = Login::new(&text) else { return Ok(()); };
            let forms: [String; 3] = [text.clone(), text.nfc().collect(), text.nfd().collect()];
            for form in forms {
                let presented = PresentedLogin::new(&form).unwrap();
                prop_assert!(presented.spellings().contains(&login.0));
                prop_assert_eq!(presented.normalized(), login.as_str());
            }
        }
    }

    #[test]
    fn the_schema_has_the_limits_of_a_login() {
        let schema = Login::schema();
        let limit = |name| usize::try_from(schema[name].as_u64().unwrap()).unwrap();
        let of_length = |length| Login::new(&"x".repeat(length)).map(|_| ());
        let (min, max) = (limit("minLength"), limit("maxLength"));
        assert_eq!((of_length(min), of_length(max)), (Ok(()), Ok(())));
        assert_eq!(of_length(min - 1), Err(InvalidLogin::TooShort));
        assert_eq!(of_length(max + 1), Err(InvalidLogin::TooLong));
    }

    #[test]
    fn an_account_is_found_by_the_spellings_that_it_reserves() {
        for stored in ["alice", "A\u{308}rger", "a\u{308}\u{e4}"] {
            let login = Login::from_stored(stored.to_owned());
            assert!(login.spellings().contains(&stored.to_owned()));
            assert_eq!(PresentedLogin::from(&login).spellings(), login.spellings());
        }
    }
}
