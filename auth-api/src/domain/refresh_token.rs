//! Refresh tokens: 256 random bits, good for one use, bound to their session (RFC 9700, section 4.14).
//!
//! A token names its session and carries a seal by which we know our own, even one that was used
//! long ago: presenting that is a theft, and anything else is noise. The store keeps a token's
//! SHA-256 only. So that a client whose answer was lost can be told the same successor again, that
//! is kept too, hidden under the token that it follows.

use std::fmt;

use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretSlice};
use subtle::ConstantTimeEq;

use super::session::SessionId;
use super::token::Principal;
use super::user::UserId;

const SECRET: usize = 32;
const SEAL: usize = 16;
const BODY: usize = 8 + 16 + SECRET;
const TOKEN: usize = BODY + SEAL;

/// SHA-256 of a token's secret, which has bits enough to need no slow hash.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RefreshHash(pub(crate) [u8; 32]);

/// A successor that only the holder of its predecessor can open.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct SealedSecret(pub(crate) [u8; SECRET]);

/// A refresh token of ours, though it may have been used already.
#[derive(Clone)]
pub(crate) struct RefreshToken {
    pub(crate) principal: Principal,
    secret: [u8; SECRET],
}

/// Makes refresh tokens and knows its own.
pub(crate) struct RefreshTokens {
    /// The present key, then the one before it.
    seals: Vec<hmac::Key>,
}

impl RefreshTokens {
    /// Tokens that were sealed with `previous` are still known.
    pub(crate) fn new(key: &SecretSlice<u8>, previous: Option<&SecretSlice<u8>>) -> Self {
        let seals = std::iter::once(key).chain(previous).map(seal_key).collect();
        Self { seals }
    }

    /// The text for the one answer that carries it.
    pub(crate) fn encode(&self, token: &RefreshToken) -> String {
        let body = token.body();
        let seal = seal(&self.seals[0], &body);
        URL_SAFE_NO_PAD.encode([&body[..], &seal[..]].concat())
    }

    /// Reads what a client presents; nothing where we never made it.
    pub(crate) fn decode(&self, text: &str) -> Option<RefreshToken> {
        let bytes: [u8; TOKEN] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
        let (body, presented) = bytes.split_at(BODY);
        let is_ours = self
            .seals
            .iter()
            .any(|key| seal(key, body).ct_eq(presented).into());
        if !is_ours {
            return None;
        }
        let (user, rest) = body.split_first_chunk::<8>()?;
        let (session, secret) = rest.split_first_chunk::<16>()?;
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
    /// A new one for a session.
    pub(crate) fn random(principal: Principal) -> Self {
        let mut secret = [0; SECRET];
        aws_lc_rs::rand::fill(&mut secret).expect("the operating system has random bytes");
        Self { principal, secret }
    }

    pub(crate) fn hash(&self) -> RefreshHash {
        RefreshHash(sha256(&[&self.secret]))
    }

    /// Hides the token that follows this one from everybody who does not hold this one.
    pub(crate) fn seal_successor(&self, next: &Self) -> SealedSecret {
        SealedSecret(self.mask(next.secret))
    }

    /// Opens what [`Self::seal_successor`] made.
    pub(crate) fn open_successor(&self, sealed: SealedSecret) -> Self {
        Self {
            principal: self.principal,
            secret: self.mask(sealed.0),
        }
    }

    /// Each token has one successor, so this pad is used once.
    fn mask(&self, mut bytes: [u8; SECRET]) -> [u8; SECRET] {
        let pad = sha256(&[b"successor", &self.secret]);
        for (byte, pad) in bytes.iter_mut().zip(pad) {
            *byte ^= pad;
        }
        bytes
    }

    fn body(&self) -> [u8; BODY] {
        let mut body = [0; BODY];
        let (user, rest) = body.split_at_mut(8);
        let (session, secret) = rest.split_at_mut(16);
        user.copy_from_slice(&self.principal.user.0.to_be_bytes());
        session.copy_from_slice(self.principal.session.as_bytes());
        secret.copy_from_slice(&self.secret);
        body
    }
}

/// A key of its own, so that nothing that is signed for another purpose is a seal.
fn seal_key(key: &SecretSlice<u8>) -> hmac::Key {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.expose_secret());
    let derived = hmac::sign(&key, b"refresh token");
    hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())
}

fn seal(key: &hmac::Key, body: &[u8]) -> [u8; SEAL] {
    *hmac::sign(key, body)
        .as_ref()
        .first_chunk()
        .expect("HMAC-SHA-256 has 32 bytes")
}

/// SHA-256 of parts one after the other.
pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

impl fmt::Debug for RefreshToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RefreshToken")
            .field("principal", &self.principal)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RefreshHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("RefreshHash(…)")
    }
}

impl fmt::Debug for SealedSecret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SealedSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> SecretSlice<u8> {
        SecretSlice::from(text.as_bytes().to_vec())
    }

    fn token() -> RefreshToken {
        RefreshToken::random(Principal {
            user: UserId(42),
            session: SessionId::random(),
        })
    }

    #[test]
    fn a_token_reads_back_also_after_the_key_is_rotated() {
        let token = token();
        let text = RefreshTokens::new(&key("old"), None).encode(&token);
        let rotated = RefreshTokens::new(&key("new"), Some(&key("old")));
        let read = rotated.decode(&text).unwrap();
        assert_eq!(
            (read.principal, read.hash()),
            (token.principal, token.hash())
        );
        assert!(
            RefreshTokens::new(&key("new"), None)
                .decode(&text)
                .is_none()
        );
    }

    #[test]
    fn what_we_never_made_is_none() {
        let tokens = RefreshTokens::new(&key("a"), None);
        let text = tokens.encode(&token());
        for other in [
            "",
            "abc",
            &text[1..],
            &format!("{text}A"),
            &text.replace(&text[40..44], "AAAA"),
        ] {
            assert!(tokens.decode(other).is_none(), "{other}");
        }
    }

    #[test]
    fn only_its_predecessor_opens_a_sealed_token() {
        let (first, second, stranger) = (token(), token(), token());
        let sealed = first.seal_successor(&second);
        assert_eq!(first.open_successor(sealed).hash(), second.hash());
        assert_ne!(stranger.open_successor(sealed).hash(), second.hash());
    }
}
