//! Passwords, and what is stored of them.

use std::str::FromStr;

use base64::Engine as _;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use super::common_passwords;
use super::login::Login;
use crate::hashing::Digest;

const MIN_CHARACTERS: usize = 8;
// bcrypt reads 72 bytes and ignores the rest: two long passwords could be one (OWASP Password Storage).
const MAX_BYTES: usize = 72;

/// A password as somebody presented it: to be compared, never stored, never shown.
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

/// A password that an account may be given: 8 characters to 72 bytes, without NUL, not the
/// login and none of the commonest (NIST SP 800-63B-4, section 3.1.1).
#[derive(Debug, Clone)]
pub(crate) struct NewPassword(Password);

/// Why a text may not become a password. Its `Display` is what the client reads.
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
    /// As JSON Schema, which cannot count bytes.
    pub(crate) fn schema() -> Value {
        json!({
            "type": "string",
            "format": "password",
            "minLength": MIN_CHARACTERS,
            "maxLength": MAX_BYTES,
            "description": "At most 72 bytes in UTF-8, without NUL, none of the commonest.",
        })
    }

    /// A password for anybody; [`NewPassword::for_login`] says whether it is one for `login`.
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
        if common_passwords::contain(text) {
            return Err(InvalidPassword::TooCommon);
        }
        Ok(Self(Password::presented(text)))
    }

    /// Refuses a password that everybody who knows the login knows.
    pub(crate) fn for_login(self, login: &Login) -> Result<Self, InvalidPassword> {
        if self.0.0.expose_secret() == login.as_str() {
            return Err(InvalidPassword::IsLogin);
        }
        Ok(self)
    }

    pub(crate) fn as_password(&self) -> &Password {
        &self.0
    }
}

/// What is stored of a password, as text: a bcrypt hash such as `$2b$12$…`, or what no password matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PasswordHash {
    text: String,
    bcrypt: Option<Bcrypt>,
}

/// A bcrypt hash, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bcrypt {
    pub(crate) cost: u32,
    pub(crate) salt: [u8; 16],
    /// In base64.
    digest: [u8; 31],
}

/// Where the digest begins in a hash's text: after version, cost and salt.
const DIGEST_AT: usize = 29;
/// What bcrypt keeps of a digest's 24 bytes.
const DIGEST_BYTES: usize = 23;

impl PasswordHash {
    /// Puts a hash together as bcrypt's version 2b.
    pub(crate) fn new(cost: u32, salt: [u8; 16], digest: &Digest) -> Self {
        let encode = |bytes: &[u8]| bcrypt::BASE_64.encode(bytes);
        Self::stored(format!(
            "$2b${cost:02}${}{}",
            encode(&salt),
            encode(&digest[..DIGEST_BYTES])
        ))
    }

    /// As a store has it.
    pub(crate) fn stored(text: String) -> Self {
        let bcrypt = Bcrypt::parse(&text);
        Self { text, bcrypt }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Nothing where it is no hash.
    pub(crate) fn bcrypt(&self) -> Option<Bcrypt> {
        self.bcrypt
    }
}

impl Bcrypt {
    fn parse(text: &str) -> Option<Self> {
        let known = ["$2a$", "$2b$", "$2y$"];
        if !known.iter().any(|version| text.starts_with(version)) {
            return None;
        }
        let parts = bcrypt::HashParts::from_str(text).ok()?;
        let cost = parts.get_cost();
        let digest = text.as_bytes().get(DIGEST_AT..)?.try_into().ok()?;
        (4..=31).contains(&cost).then_some(Self {
            cost,
            salt: parts.get_salt_raw(),
            digest,
        })
    }

    /// Whether `digest`, made with this hash's salt and cost, is the one that is stored. Takes the
    /// same time wherever they differ.
    pub(crate) fn matches(&self, digest: &Digest) -> bool {
        let made = bcrypt::BASE_64.encode(&digest[..DIGEST_BYTES]);
        made.as_bytes().ct_eq(&self.digest).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_become_a_password() {
        for good in ["securepassword123", "        ", "пароль12", &"x".repeat(72)] {
            assert!(NewPassword::new(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("1234567", InvalidPassword::TooShort),
            ("пароль1", InvalidPassword::TooShort),
            ("1234567\0", InvalidPassword::Nul),
            ("Password1", InvalidPassword::TooCommon),
            ("1234567890", InvalidPassword::TooCommon),
            (&"x".repeat(73), InvalidPassword::TooLong),
            (&"ж".repeat(37), InvalidPassword::TooLong),
        ] {
            assert_eq!(NewPassword::new(bad).err(), Some(why), "{bad:?}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        assert!(!format!("{:?}", NewPassword::new("securepassword123")).contains("secure"));
    }

    #[test]
    fn a_hash_has_one_form() {
        let text = "$2b$12$DCq7YPn5Rq63x1Lad4cll.TV4S6ytwfsfvkgY8jIucDrjc8deX1s.";
        let hash = PasswordHash::stored(text.to_owned());
        assert_eq!(hash.as_str(), text);
        assert_eq!(hash.bcrypt().map(|bcrypt| bcrypt.cost), Some(12));
        for bad in [
            "",
            "x",
            &text[..59],
            &text.replace("$2b$12", "$2b$99"),
            &text.replace("$2b", "$2x"),
        ] {
            let hash = PasswordHash::stored(bad.to_owned());
            assert_eq!((hash.as_str(), hash.bcrypt()), (bad, None));
        }
    }
}
