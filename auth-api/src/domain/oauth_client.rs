//! OAuth clients: services that may introspect and revoke tokens (RFC 6749, section 2).
//!
//! A client proves its identity by a secret of 256 random bits that this service has generated. It cannot be guessed,
//! so a store holds its SHA-256; a slow hash as for passwords would only slow requests down.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::digest::sha256;
use super::login::is_invisible_or_unassigned;

const SECRET_BYTES: usize = 32;
const HASH_BYTES: usize = 32;
const MAX_NAME_CHARACTERS: usize = 255;

/// Identifier of a client: a version 4 UUID as 32 lower-case hexadecimal digits. It is no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OAuthClientId(Uuid);

impl OAuthClientId {
    pub(crate) fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Parses the canonical spelling only.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let id = Uuid::try_parse(text).ok().map(Self)?;
        (id.to_string() == text).then_some(id)
    }

    /// Converts what a client presents. A text that is no id becomes the nil UUID, which no client has, so that it
    /// is looked up and refused like any other unknown id.
    pub(crate) fn presented(text: &str) -> Self {
        Self::parse(text).unwrap_or(Self(Uuid::nil()))
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for OAuthClientId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(formatter)
    }
}

/// Secret of a client, or any text that is presented as one. Its `Debug` does not show it.
#[derive(Debug, Clone)]
pub(crate) struct OAuthClientSecret(SecretString);

impl OAuthClientSecret {
    /// Creates a secret, which consists of characters that need no encoding in a form or in Basic authentication.
    pub(crate) fn random() -> Self {
        let mut secret = [0; SECRET_BYTES];
        aws_lc_rs::rand::fill(&mut secret).expect("the operating system provides random bytes");
        Self(URL_SAFE_NO_PAD.encode(secret).into())
    }

    pub(crate) fn presented(text: String) -> Self {
        Self(text.into())
    }

    pub(crate) fn hash(&self) -> OAuthClientSecretHash {
        OAuthClientSecretHash(sha256(&[self.0.expose_secret().as_bytes()]))
    }

    /// Returns the secret for the operator who has created the client.
    pub(crate) fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// SHA-256 of a secret. It has no `PartialEq`, so that it is compared in constant time only.
#[derive(Clone, Copy)]
pub(crate) struct OAuthClientSecretHash([u8; HASH_BYTES]);

impl OAuthClientSecretHash {
    /// Hash that is compared with for an unknown client. No secret is known to have it.
    pub(crate) const OF_NO_CLIENT: Self = Self([0; HASH_BYTES]);

    /// Returns `None` if the stored bytes are no SHA-256.
    pub(crate) fn from_stored(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Compares in constant time.
    pub(crate) fn equals(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for OAuthClientSecretHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("OAuthClientSecretHash(…)")
    }
}

/// Name by which operators know a client. Several clients may have the same name: a secret is replaced by a second
/// client, so that both are valid until all instances of the service have the new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OAuthClientName(String);

/// Reason a text cannot be the name of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidOAuthClientName {
    #[error("the name must not be empty")]
    Empty,
    #[error("the name must be at most {MAX_NAME_CHARACTERS} characters long")]
    TooLong,
    #[error("the name must not contain control, invisible or unassigned characters")]
    InvisibleCharacter,
    #[error("the name must not begin or end with a blank")]
    SurroundingWhitespace,
}

impl OAuthClientName {
    /// Parses the name of a new client: 1 to 255 characters, no control, invisible or unassigned characters, no
    /// leading or trailing whitespace.
    ///
    /// # Errors
    /// Returns an error that names the first rule that `text` violates.
    pub(crate) fn new(text: &str) -> Result<Self, InvalidOAuthClientName> {
        if text.is_empty() {
            return Err(InvalidOAuthClientName::Empty);
        }
        if text.chars().count() > MAX_NAME_CHARACTERS {
            return Err(InvalidOAuthClientName::TooLong);
        }
        let is_invisible =
            |character: char| character.is_control() || is_invisible_or_unassigned(character);
        if text.chars().any(is_invisible) {
            return Err(InvalidOAuthClientName::InvisibleCharacter);
        }
        if text.trim() != text {
            return Err(InvalidOAuthClientName::SurroundingWhitespace);
        }
        Ok(Self(text.to_owned()))
    }

    /// Accepts the text from a store as it is.
    pub(crate) fn from_stored(text: String) -> Self {
        Self(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Registered client.
#[derive(Debug, Clone)]
pub(crate) struct OAuthClient {
    pub(crate) id: OAuthClientId,
    pub(crate) name: OAuthClientName,
}

/// Client to be registered.
#[derive(Debug, Clone)]
pub(crate) struct NewOAuthClient {
    pub(crate) client: OAuthClient,
    pub(crate) secret_hash: OAuthClientSecretHash,
    pub(crate) created_at: DateTime<Utc>,
}

/// Client as an operator sees it.
#[derive(Debug, Clone)]
pub(crate) struct ListedOAuthClient {
    pub(crate) client: OAuthClient,
    /// `None` for a time that cannot be represented.
    pub(crate) created_at: Option<DateTime<Utc>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_256_random_bits_and_matches_its_own_hash_alone() {
        let (one, other) = (OAuthClientSecret::random(), OAuthClientSecret::random());
        let bytes = URL_SAFE_NO_PAD.decode(one.expose()).unwrap();
        assert_eq!(bytes.len() * 8, 256);
        let presented = OAuthClientSecret::presented(one.expose().to_owned());
        assert!(one.hash().equals(&presented.hash()));
        assert!(!one.hash().equals(&other.hash()));
        assert!(!OAuthClientSecretHash::OF_NO_CLIENT.equals(&one.hash()));
        let debug = format!("{one:?} {:?}", one.hash());
        assert!(!debug.contains(one.expose()), "{debug}");
    }

    #[test]
    fn only_the_canonical_spelling_of_an_id_is_accepted() {
        let id = OAuthClientId::random();
        let text = id.to_string();
        assert_eq!(OAuthClientId::presented(&text), id);
        let nil = OAuthClientId(Uuid::nil());
        for other in [
            "",
            "x",
            &text
                .to_uppercase()
                .replace(|digit: char| digit.is_ascii_digit(), "A"),
            &format!("{{{text}}}"),
            &format!("{text}\0"),
            &id.0.hyphenated().to_string(),
        ] {
            assert_eq!(OAuthClientId::parse(other), None, "{other}");
            assert_eq!(OAuthClientId::presented(other), nil, "{other}");
        }
    }

    #[test]
    fn a_name_is_one_visible_line() {
        for valid in ["orders", "a b", "日本語", &"é".repeat(255)] {
            assert!(OAuthClientName::new(valid).is_ok(), "{valid}");
        }
        for (invalid, reason) in [
            ("", InvalidOAuthClientName::Empty),
            (&"x".repeat(256), InvalidOAuthClientName::TooLong),
            ("a\nb", InvalidOAuthClientName::InvisibleCharacter),
            ("a\0", InvalidOAuthClientName::InvisibleCharacter),
            ("a\u{200b}b", InvalidOAuthClientName::InvisibleCharacter),
            (" a", InvalidOAuthClientName::SurroundingWhitespace),
            (" ", InvalidOAuthClientName::SurroundingWhitespace),
        ] {
            assert_eq!(OAuthClientName::new(invalid), Err(reason), "{invalid:?}");
        }
    }
}
