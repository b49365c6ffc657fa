//! Stored password hashes in bcrypt's modular crypt format, such as `$2b$12$…`.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use base64::Engine as _;
use subtle::ConstantTimeEq;

/// Stored password hash: a bcrypt hash, or any other text, which matches no password. Its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct PasswordHash {
    text: String,
    bcrypt: Option<BcryptHash>,
}

/// Parsed bcrypt hash. Its `Debug` shows its cost alone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct BcryptHash {
    pub(crate) cost: u32,
    pub(crate) salt: [u8; 16],
    /// In bcrypt's base64.
    digest: [u8; 31],
}

/// Raw output of bcrypt. The text form keeps its first 23 bytes.
pub(crate) type BcryptDigest = [u8; 24];

/// Position of the two digits of the cost.
const COST: Range<usize> = 4..6;
/// Offset of the digest in a hash's text, after version, cost and salt.
const DIGEST_OFFSET: usize = 29;
/// Bytes of the raw digest that the text form keeps.
const STORED_DIGEST_BYTES: usize = 23;

impl PasswordHash {
    /// Formats a hash of bcrypt's version 2b.
    pub(crate) fn new(cost: u32, salt: [u8; 16], digest: &BcryptDigest) -> Self {
        let encode = |bytes: &[u8]| bcrypt::BASE_64.encode(bytes);
        Self::from_stored(format!(
            "$2b${cost:02}${}{}",
            encode(&salt),
            encode(&digest[..STORED_DIGEST_BYTES])
        ))
    }

    /// Accepts the text from a store as it is.
    pub(crate) fn from_stored(text: String) -> Self {
        let bcrypt = BcryptHash::parse(&text);
        Self { text, bcrypt }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns `None` if the stored text is not a bcrypt hash.
    pub(crate) fn as_bcrypt(&self) -> Option<BcryptHash> {
        self.bcrypt
    }
}

impl BcryptHash {
    fn parse(text: &str) -> Option<Self> {
        let known_versions = ["$2a$", "$2b$", "$2y$"];
        if !known_versions
            .iter()
            .any(|version| text.starts_with(version))
        {
            return None;
        }
        // The crate accepts a sign in place of the first digit of the cost.
        let is_cost = text
            .get(COST)
            .is_some_and(|cost| cost.bytes().all(|byte| byte.is_ascii_digit()));
        let parts = bcrypt::HashParts::from_str(text).ok().filter(|_| is_cost)?;
        let cost = parts.get_cost();
        let digest = text.as_bytes().get(DIGEST_OFFSET..)?.try_into().ok()?;
        (4..=31).contains(&cost).then_some(Self {
            cost,
            salt: parts.get_salt_raw(),
            digest,
        })
    }

    /// Returns whether `digest`, computed with this hash's salt and cost, equals the stored one.
    /// Runs in constant time.
    pub(crate) fn matches(&self, digest: &BcryptDigest) -> bool {
        let computed = bcrypt::BASE_64.encode(&digest[..STORED_DIGEST_BYTES]);
        computed.as_bytes().ct_eq(&self.digest).into()
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PasswordHash")
            .field("bcrypt", &self.bcrypt)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for BcryptHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("BcryptHash")
            .field("cost", &self.cost)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bcrypt_hashes_are_parsed_and_any_text_is_kept() {
        let text = "$2b$12$DCq7YPn5Rq63x1Lad4cll.TV4S6ytwfsfvkgY8jIucDrjc8deX1s.";
        let hash = PasswordHash::from_stored(text.to_owned());
        assert_eq!(hash.as_str(), text);
        assert_eq!(hash.as_bcrypt().map(|bcrypt| bcrypt.cost), Some(12));
        assert_eq!(
            format!("{hash:?}"),
            "PasswordHash { bcrypt: Some(BcryptHash { cost: 12, .. }), .. }"
        );
        for invalid in [
            "",
            "x",
            &text[..59],
            &text.replace("$2b$12", "$2b$99"),
            &text.replace("$2b", "$2x"),
            &text.replace("$12", "$+5"),
        ] {
            let hash = PasswordHash::from_stored(invalid.to_owned());
            assert_eq!((hash.as_str(), hash.as_bcrypt()), (invalid, None));
        }
    }
}
