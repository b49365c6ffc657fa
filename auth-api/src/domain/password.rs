//! Passwords as clients send them.
//!
//! One password has several spellings in Unicode (`é` is one code point or two), and keyboards differ in
//! which they send. So hashes are of Unicode normalization form C (NIST SP 800-63B-4, section 3.1.1;
//! UAX #15). Hashes made before may be of another form, so a check tries those too.

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use unicode_normalization::UnicodeNormalization;

use super::common_passwords;
use super::login::Login;

const MIN_CHARACTERS: usize = 8;
// bcrypt reads 72 bytes and ignores the rest: two long passwords could be one (OWASP Password Storage).
const MAX_BYTES: usize = 72;

/// Password that a client presented for verification. Its `Debug` does not show it.
#[derive(Debug, Clone)]
pub(crate) struct Password(SecretString);

impl Password {
    pub(crate) fn presented(text: &str) -> Self {
        Self(text.into())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.expose_secret().as_bytes()
    }

    /// Returns the spellings whose hashes the password matches, without duplicates: normalization form C,
    /// the form that was presented, and form D. There is only one if it is ASCII.
    pub(crate) fn spellings(&self) -> Vec<Self> {
        let presented = self.0.expose_secret();
        let nfc: SecretString = presented.nfc().collect::<String>().into();
        let nfd: SecretString = presented.nfd().collect::<String>().into();
        let mut spellings = vec![Self(nfc)];
        for other in [self.0.clone(), nfd] {
            let text = other.expose_secret();
            if spellings
                .iter()
                .all(|known| known.0.expose_secret() != text)
            {
                spellings.push(Self(other));
            }
        }
        spellings
    }

    /// Returns whether the password contains NUL, with which it matches no hash: bcrypt repeats a password
    /// and the NUL that ends it, so `P` and `P␀P` have the same hashes, and implementations in C end a
    /// password at its first NUL.
    pub(crate) fn contains_nul(&self) -> bool {
        self.bytes().contains(&0)
    }

    /// Returns the password as one that an account may be given, `None` if it violates the rules.
    pub(crate) fn to_new(&self) -> Option<NewPassword> {
        NewPassword::new(self.0.expose_secret()).ok()
    }
}

/// Password that an account may be given, in normalization form C: at least 8 characters, at most 72
/// bytes, without NUL, not the login and not a common password (NIST SP 800-63B-4, section 3.1.1).
#[derive(Debug, Clone)]
pub(crate) struct NewPassword(Password);

/// Reason a text cannot become a password. Its `Display` is the message for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidPassword {
    #[error("Password must be at least 8 characters long")]
    TooShort,
    #[error("Password must be at most 72 bytes long")]
    TooLong,
    #[error("Password must not contain NUL")]
    Nul,
    #[error("Password is too common")]
    TooCommon,
    #[error("Password must not be the login")]
    IsLogin,
}

impl NewPassword {
    /// Returns the JSON Schema, which cannot count bytes.
    pub(crate) fn schema() -> Value {
        json!({
            "type": "string",
            "format": "password",
            "minLength": MIN_CHARACTERS,
            "maxLength": MAX_BYTES,
            "description": "At most 72 bytes in UTF-8 and Unicode normalization form C, without NUL, not a common password.",
        })
    }

    /// Checks every rule that does not depend on the account; [`Self::distinct_from`] checks the other.
    ///
    /// # Errors
    /// Returns an error that names the first rule that `text` violates.
    pub(crate) fn new(text: &str) -> Result<Self, InvalidPassword> {
        let normalized: SecretString = text.nfc().collect::<String>().into();
        let text = normalized.expose_secret();
        if text.chars().count() < MIN_CHARACTERS {
            return Err(InvalidPassword::TooShort);
        }
        if text.len() > MAX_BYTES {
            return Err(InvalidPassword::TooLong);
        }
        if text.contains('\0') {
            return Err(InvalidPassword::Nul);
        }
        if common_passwords::is_common(text) {
            return Err(InvalidPassword::TooCommon);
        }
        Ok(Self(Password(normalized)))
    }

    /// Rejects a password that equals the login, which is not a secret, in any case and any normalization
    /// form.
    ///
    /// # Errors
    /// Returns an error if the password equals `login`.
    pub(crate) fn distinct_from(self, login: &Login) -> Result<Self, InvalidPassword> {
        if fold(self.0.0.expose_secret()) == fold(login.as_str()) {
            return Err(InvalidPassword::IsLogin);
        }
        Ok(self)
    }

    pub(crate) fn as_password(&self) -> &Password {
        &self.0
    }
}

/// Maps texts that differ only in case or in normalization form to one.
fn fold(text: &str) -> String {
    // Upper case first: it maps `ß` to `SS`, which lower case alone would not equate with `ss`.
    let compatible: String = text.nfkc().collect();
    compatible.to_uppercase().to_lowercase().nfkc().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_passwords_within_the_rules_are_accepted() {
        for valid in ["securepassword123", "        ", "пароль12", &"x".repeat(72)] {
            assert!(NewPassword::new(valid).is_ok(), "{valid}");
        }
        for (invalid, reason) in [
            ("1234567", InvalidPassword::TooShort),
            ("пароль1", InvalidPassword::TooShort),
            ("1234567\0", InvalidPassword::Nul),
            ("Password1", InvalidPassword::TooCommon),
            ("1234567890", InvalidPassword::TooCommon),
            (&"x".repeat(73), InvalidPassword::TooLong),
            (&"ж".repeat(37), InvalidPassword::TooLong),
            // Seven characters in form C.
            ("e\u{301}123456", InvalidPassword::TooShort),
        ] {
            assert_eq!(NewPassword::new(invalid).err(), Some(reason), "{invalid:?}");
        }
    }

    #[test]
    fn a_password_is_not_in_its_debug_output() {
        assert!(!format!("{:?}", NewPassword::new("securepassword123")).contains("secure"));
    }

    #[test]
    fn a_new_password_is_in_form_c() {
        let password = NewPassword::new("pa\u{308}ssword 1234").unwrap();
        assert_eq!(
            password.as_password().bytes(),
            "p\u{e4}ssword 1234".as_bytes()
        );
        // 72 bytes in form C, more in form D.
        assert!(NewPassword::new(&"e\u{301}".repeat(36)).is_ok());
    }

    #[test]
    fn spellings_are_the_normalized_the_presented_and_the_decomposed_form() {
        for (presented, expected) in [
            ("ascii", vec!["ascii"]),
            ("\u{e9}", vec!["\u{e9}", "e\u{301}"]),
            ("e\u{301}", vec!["\u{e9}", "e\u{301}"]),
            (
                "e\u{301}\u{e9}",
                vec!["\u{e9}\u{e9}", "e\u{301}\u{e9}", "e\u{301}e\u{301}"],
            ),
        ] {
            let spellings = Password::presented(presented).spellings();
            let bytes: Vec<_> = spellings.iter().map(Password::bytes).collect();
            let expected: Vec<_> = expected.iter().map(|text| text.as_bytes()).collect();
            assert_eq!(bytes, expected, "{presented:?}");
        }
    }

    #[test]
    fn the_login_is_no_password_in_any_case_or_form() {
        for (login, password) in [
            ("alice@example.org", "ALICE@Example.org"),
            ("J\u{fc}rgen Meier", "ju\u{308}rgen meier"),
            ("stra\u{df}enname", "STRASSENNAME"),
            (
                "alice@example.org",
                "\u{ff41}\u{ff4c}\u{ff49}\u{ff43}\u{ff45}@example.org",
            ),
            (
                "\u{3a3}\u{3af}\u{3c3}\u{3c5}\u{3c6}\u{3bf}\u{3c2} 1234",
                "\u{3a3}\u{38a}\u{3a3}\u{3a5}\u{3a6}\u{39f}\u{3a3} 1234",
            ),
        ] {
            let login = Login::new(login).unwrap();
            let rejected = NewPassword::new(password).unwrap().distinct_from(&login);
            assert_eq!(rejected.err(), Some(InvalidPassword::IsLogin), "{password}");
        }
        let login = Login::new("alice@example.org").unwrap();
        let other = NewPassword::new("alice@example.com").unwrap();
        assert!(other.distinct_from(&login).is_ok());
    }

    #[test]
    fn the_schema_has_the_limits_of_a_password() {
        let schema = NewPassword::schema();
        let limit = |name| usize::try_from(schema[name].as_u64().unwrap()).unwrap();
        let of_length = |length| {
            let text: String = "pJ4-vX9_".chars().cycle().take(length).collect();
            NewPassword::new(&text).err()
        };
        let (min, max) = (limit("minLength"), limit("maxLength"));
        assert_eq!((of_length(min), of_length(max)), (None, None));
        assert_eq!(of_length(min - 1), Some(InvalidPassword::TooShort));
        assert_eq!(of_length(max + 1), Some(InvalidPassword::TooLong));
    }
}
