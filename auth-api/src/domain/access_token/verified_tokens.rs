//! Bounded cache of verified tokens, by their SHA-256.
//!
//! To verify an Ed25519 signature takes some 40 µs, many times what else a request costs, and to parse a token of
//! `SECRET_KEY` takes longer than to look it up. A signature stays valid, so only the expiry is compared again;
//! whether the session is active is no part of the cache.
//!
//! Entries are in two generations. When the young one is full it becomes the old one, which is dropped, so that
//! a token that is used stays and the memory is bounded.

use std::collections::HashMap;
use std::mem;

use parking_lot::Mutex;

use crate::domain::digest::sha256;
use crate::domain::principal::Principal;

/// Entries of a generation, of about 100 bytes each.
const GENERATION_ENTRIES: usize = 10_000;

/// SHA-256 of a whole token, signature included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TokenDigest([u8; 32]);

impl TokenDigest {
    pub(super) fn of(token: &str) -> Self {
        Self(sha256(&[token.as_bytes()]))
    }
}

/// Result of a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VerifiedToken {
    pub(super) principal: Principal,
    /// Unix time in seconds.
    pub(super) expires_at: i64,
}

/// Tokens whose signature and claims were verified.
#[derive(Debug, Default)]
pub(super) struct VerifiedTokens(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<TokenDigest, VerifiedToken>,
    old: HashMap<TokenDigest, VerifiedToken>,
}

impl VerifiedTokens {
    pub(super) fn get(&self, digest: &TokenDigest) -> Option<VerifiedToken> {
        let mut generations = self.0.lock();
        if let Some(token) = generations.young.get(digest) {
            return Some(*token);
        }
        let token = generations.old.remove(digest)?;
        generations.insert(*digest, token);
        Some(token)
    }

    pub(super) fn insert(&self, digest: TokenDigest, token: VerifiedToken) {
        self.0.lock().insert(digest, token);
    }
}

impl Generations {
    fn insert(&mut self, digest: TokenDigest, token: VerifiedToken) {
        if self.young.len() >= GENERATION_ENTRIES {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(digest, token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::principal::SessionId;
    use crate::domain::user::UserId;

    fn token(user: i64) -> (TokenDigest, VerifiedToken) {
        let principal = Principal {
            user: UserId(user),
            session: SessionId::random(),
        };
        let token = VerifiedToken {
            principal,
            expires_at: 0,
        };
        (TokenDigest::of(&user.to_string()), token)
    }

    #[test]
    fn a_token_that_is_used_stays_and_the_number_of_entries_is_bounded() {
        let (tokens, (used, verified)) = (VerifiedTokens::default(), token(-1));
        tokens.insert(used, verified);
        let (unused, other) = token(-2);
        tokens.insert(unused, other);
        for user in 0..5 * GENERATION_ENTRIES {
            let (digest, token) = token(i64::try_from(user).unwrap());
            tokens.insert(digest, token);
            if user % 1000 == 0 {
                assert_eq!(tokens.get(&used), Some(verified), "{user}");
            }
        }
        assert_eq!(tokens.get(&unused), None);
        let generations = tokens.0.lock();
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION_ENTRIES);
    }
}
