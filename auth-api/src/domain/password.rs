//! Passwords as clients send them.

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

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
}

/// Password that an account may be given: at least 8 characters, at most 72 bytes, without NUL, not
/// the login and not a common password (NIST SP 800-63B-4, section 3.1.1).
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
            "description": "At most 72 bytes in UTF-8, without NUL, not a common password.",
        })
    }

    /// Checks every rule that does not depend on the account; [`Self::distinct_from`] checks the other.
    ///
    /// # Errors
    /// Returns an error that names the first rule that `text` violates.
    pub(crate) fn new(text: &str) -> Result<Self, InvalidPassword> {
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
        Ok(Self(Password::presented(text)))
    }

    /// Rejects a password that equals the login, which is not a secret.
    ///
    /// # Errors
    /// Returns an error if the password equals `login`.
    pub(crate) fn distinct_from(self, login: &Login) -> Result<Self, InvalidPassword> {
        if self.0.0.expose_secret() == login.as_str() {
            return Err(InvalidPassword::IsLogin);
        }
        Ok(self)
    }

    pub(crate) fn as_password(&self) -> &Password {
        &self.0
    }
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
        ] {
            assert_eq!(NewPassword::new(invalid).err(), Some(reason), "{invalid:?}");
        }
    }

    #[test]
    fn a_password_is_not_in_its_debug_output() {
        assert!(!format!("{:?}", NewPassword::new("securepassword123")).contains("secure"));
    }
}
