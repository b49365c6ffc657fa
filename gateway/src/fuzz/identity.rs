//! Screening of access tokens.

use crate::identity::{Expected, KeySet, Screened, Signature, screen};

/// Gateway that knows the keys of an issuer.
#[derive(Debug)]
pub struct TokenScreening {
    keys: KeySet,
    issuer: String,
    audience: String,
}

/// Token that a gateway does not reject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScreenedToken {
    pub expires_at: Option<i64>,
    /// True if one of the keys has signed it.
    pub is_verified: bool,
}

impl TokenScreening {
    /// Creates a gateway with a JSON Web Key Set, for tokens of `issuer` for `audience`.
    ///
    /// # Panics
    /// Panics if `key_set` is no such set.
    #[must_use]
    pub fn new(key_set: &[u8], issuer: &str, audience: &str) -> Self {
        Self {
            keys: KeySet::parse(key_set).expect("a key set"),
            issuer: issuer.to_owned(),
            audience: audience.to_owned(),
        }
    }

    /// Screens a token at a time in seconds since 1970. Returns `None` if it is rejected.
    #[must_use]
    pub fn screen(&self, token: &str, now: i64) -> Option<ScreenedToken> {
        let expected = Expected {
            keys: &self.keys,
            issuer: &self.issuer,
            audience: Some(&self.audience),
        };
        let Screened {
            expires_at,
            signature,
        } = screen(token, Some(expected), now).ok()?;
        Some(ScreenedToken {
            expires_at,
            is_verified: signature == Signature::Verified,
        })
    }
}
