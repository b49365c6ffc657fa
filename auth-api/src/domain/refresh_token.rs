//! Refresh tokens: single use, bound to a session, rotated on use (RFC 9700, section 4.14).
//!
//! A token consists of user id, session id, 256 random bits and a MAC, in base64url. The MAC
//! proves that this service issued a token, however long ago it was used: presenting a used one is
//! reuse, which ends the session, while a token with a wrong MAC is ignored as noise.
//!
//! The secret begins with the token's generation, which counts the tokens of a session from a random
//! number on: a token of a later generation than the store knows was issued by a rotation that the
//! store has lost. The other 224 bits are random in each token, all 256 in the first one.
//!
//! A store holds only the SHA-256 of a token's secret. For a client that retries because it lost
//! the response, the store also holds the successor, encrypted with a pad that is derived from the
//! secret of the token that it replaces. A token has another successor only if the first one was
//! never used, and the store then holds that one alone.

use std::fmt;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretSlice};
use subtle::ConstantTimeEq;

use super::digest::sha256;
use super::principal::{Principal, SessionId};
use super::secret_keys::SecretKeys;
use super::user::UserId;

const USER_BYTES: usize = 8;
const SESSION_BYTES: usize = 16;
const SECRET_BYTES: usize = 32;
const GENERATION_BYTES: usize = 4;
const PAYLOAD_BYTES: usize = USER_BYTES + SESSION_BYTES + SECRET_BYTES;
const MAC_BYTES: usize = 16;
const TOKEN_BYTES: usize = PAYLOAD_BYTES + MAC_BYTES;

/// SHA-256 of a token's secret. A slow hash is not needed: the secret has 256 bits of entropy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RefreshTokenHash(pub(crate) [u8; 32]);

/// Position of a token among those of its session, modulo 2^32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RefreshTokenGeneration(pub(crate) u32);

impl RefreshTokenGeneration {
    /// Returns by how many rotations this generation is after `other`.
    pub(crate) fn distance_from(self, other: Self) -> u32 {
        self.0.wrapping_sub(other.0)
    }
}

/// Secret of a token's successor, encrypted so that only the holder of the token can decrypt it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct SealedSuccessor(pub(crate) [u8; SECRET_BYTES]);

/// Refresh token that this service issued. It may have been used already.
#[derive(Clone)]
pub(crate) struct RefreshToken {
    pub(crate) principal: Principal,
    secret: [u8; SECRET_BYTES],
}

/// MAC keys of refresh tokens.
pub(crate) struct RefreshTokenKeys {
    /// The current key, then the others.
    mac_keys: Vec<hmac::Key>,
}

impl RefreshTokenKeys {
    /// Derives the MAC keys.
    pub(crate) fn new(keys: &SecretKeys) -> Self {
        Self {
            mac_keys: keys.verifying().map(derive_mac_key).collect(),
        }
    }

    /// Returns the text form of `token`, for the response that issues it.
    pub(crate) fn encode(&self, token: &RefreshToken) -> String {
        let payload = token.payload();
        let mac = compute_mac(&self.mac_keys[0], &payload);
        URL_SAFE_NO_PAD.encode([&payload[..], &mac[..]].concat())
    }

    /// Parses a presented token; returns `None` if this service did not issue it.
    pub(crate) fn decode(&self, text: &str) -> Option<RefreshToken> {
        let bytes: [u8; TOKEN_BYTES] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
        let (payload, presented_mac) = bytes.split_at(PAYLOAD_BYTES);
        let is_authentic = self
            .mac_keys
            .iter()
            .any(|key| compute_mac(key, payload).ct_eq(presented_mac).into());
        if !is_authentic {
            return None;
        }
        let (user, rest) = payload.split_first_chunk::<USER_BYTES>()?;
        let (session, secret) = rest.split_first_chunk::<SESSION_BYTES>()?;
        Some(RefreshToken {
            principal: Principal {
                user: UserId(i64::from_be_bytes(*user)),
                session: SessionId::from_bytes(*session),
            },
            secret: secret.try_into().ok()?,
        })
    }
}

impl RefreshToken {
    /// Creates a token with a random secret.
    pub(crate) fn random(principal: Principal) -> Self {
        let mut secret = [0; SECRET_BYTES];
        aws_lc_rs::rand::fill(&mut secret).expect("the operating system provides random bytes");
        Self { principal, secret }
    }

    pub(crate) fn hash(&self) -> RefreshTokenHash {
        RefreshTokenHash(sha256(&[&self.secret]))
    }

    /// Creates a token of the next generation.
    pub(crate) fn successor(&self) -> Self {
        let mut successor = Self::random(self.principal);
        let generation = self.generation().0.wrapping_add(1);
        successor.secret[..GENERATION_BYTES].copy_from_slice(&generation.to_be_bytes());
        successor
    }

    pub(crate) fn generation(&self) -> RefreshTokenGeneration {
        let bytes = self
            .secret
            .first_chunk()
            .expect("the secret is longer than a generation");
        RefreshTokenGeneration(u32::from_be_bytes(*bytes))
    }

    /// Encrypts the successor's secret so that only a holder of this token can decrypt it.
    pub(crate) fn seal_successor(&self, successor: &Self) -> SealedSuccessor {
        SealedSuccessor(self.apply_pad(successor.secret))
    }

    /// Decrypts the output of [`Self::seal_successor`].
    pub(crate) fn open_successor(&self, sealed: SealedSuccessor) -> Self {
        Self {
            principal: self.principal,
            secret: self.apply_pad(sealed.0),
        }
    }

    fn apply_pad(&self, mut bytes: [u8; SECRET_BYTES]) -> [u8; SECRET_BYTES] {
        let pad = sha256(&[b"successor", &self.secret]);
        for (byte, pad) in bytes.iter_mut().zip(pad) {
            *byte ^= pad;
        }
        bytes
    }

    fn payload(&self) -> [u8; PAYLOAD_BYTES] {
        let mut payload = [0; PAYLOAD_BYTES];
        let (user, rest) = payload.split_at_mut(USER_BYTES);
        let (session, secret) = rest.split_at_mut(SESSION_BYTES);
        user.copy_from_slice(&self.principal.user.0.to_be_bytes());
        session.copy_from_slice(self.principal.session.as_bytes());
        secret.copy_from_slice(&self.secret);
        payload
    }
}

/// Derives a key for this purpose alone, so that no other signature made with `key` is a valid MAC.
fn derive_mac_key(key: &SecretSlice<u8>) -> hmac::Key {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.expose_secret());
    let derived = hmac::sign(&key, b"refresh token");
    hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())
}

fn compute_mac(key: &hmac::Key, payload: &[u8]) -> [u8; MAC_BYTES] {
    *hmac::sign(key, payload)
        .as_ref()
        .first_chunk()
        .expect("HMAC-SHA-256 has 32 bytes")
}

impl fmt::Debug for RefreshToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RefreshToken")
            .field("principal", &self.principal)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RefreshTokenHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("RefreshTokenHash(…)")
    }
}

impl fmt::Debug for SealedSuccessor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SealedSuccessor(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(current: &str, others: &[&str]) -> RefreshTokenKeys {
        RefreshTokenKeys::new(&SecretKeys::of(current, others))
    }

    fn token() -> RefreshToken {
        RefreshToken::random(Principal {
            user: UserId(42),
            session: SessionId::random(),
        })
    }

    #[test]
    fn a_token_is_accepted_after_a_key_rotation() {
        let token = token();
        let text = keys("old", &[]).encode(&token);
        for rotated in [keys("new", &["older", "old"]), keys("older", &["old"])] {
            let decoded = rotated.decode(&text).unwrap();
            assert_eq!(
                (decoded.principal, decoded.hash()),
                (token.principal, token.hash())
            );
        }
        assert!(keys("new", &[]).decode(&text).is_none());
    }

    #[test]
    fn a_token_that_was_not_issued_is_rejected() {
        let keys = keys("a", &[]);
        let text = keys.encode(&token());
        for other in [
            "",
            "abc",
            &text[1..],
            &format!("{text}A"),
            &text.replace(&text[40..44], "AAAA"),
        ] {
            assert!(keys.decode(other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_successor_has_the_next_generation() {
        let mut first = token();
        let second = first.successor();
        assert_eq!(second.generation().distance_from(first.generation()), 1);
        assert_ne!(second.hash(), first.successor().hash());
        first.secret[..GENERATION_BYTES].fill(u8::MAX);
        assert_eq!(first.successor().generation().0, 0);
    }

    #[test]
    fn only_the_predecessor_decrypts_a_sealed_successor() {
        let (first, second, unrelated) = (token(), token(), token());
        let sealed = first.seal_successor(&second);
        assert_eq!(first.open_successor(sealed).hash(), second.hash());
        assert_ne!(unrelated.open_successor(sealed).hash(), second.hash());
    }

    #[test]
    fn no_secret_is_shown() {
        let (first, second) = (token(), token());
        let sealed = first.seal_successor(&second);
        let shown = format!("{first:?} {:?} {sealed:?}", first.hash());
        assert!(shown.contains("UserId(42)"), "{shown}");
        for secret in [first.secret, first.hash().0, sealed.0] {
            assert!(!shown.contains(&format!("{secret:?}")), "{shown}");
            assert!(!shown.contains(&URL_SAFE_NO_PAD.encode(secret)), "{shown}");
        }
    }
}
