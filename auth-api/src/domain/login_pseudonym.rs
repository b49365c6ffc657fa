//! Pseudonyms of logins that no account has, for the audit log.
//!
//! A client that puts a password into the field of the login would otherwise have it logged in clear.
//! A pseudonym is an HMAC-SHA-256 (RFC 2104) with a key derived from the current `SECRET_KEY` by
//! HKDF (RFC 5869): equal logins have equal pseudonyms until the key is rotated, and without the key
//! no guess can be verified.

use std::fmt::Write;

use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::hmac;
use secrecy::ExposeSecret;

use super::login::Login;
use super::secret_keys::SecretKeys;

/// Distinguishes the derived key from those of other purposes.
const KEY_LABEL: &[u8] = b"auth-api audit unknown login";
/// Bytes of a pseudonym: 128 bits, so that two logins do not have the same one by chance.
const PSEUDONYM_BYTES: usize = 16;

/// Key of the pseudonyms. Replicas with the same `SECRET_KEY` have the same key.
#[derive(Debug)]
pub(crate) struct PseudonymKey(hmac::Key);

impl PseudonymKey {
    /// Derives the key.
    ///
    /// # Panics
    /// Never: an HMAC key is not longer than HKDF permits.
    pub(crate) fn new(keys: &SecretKeys) -> Self {
        let secret = Salt::new(HKDF_SHA256, &[]).extract(keys.current().expose_secret());
        let key = secret
            .expand(&[KEY_LABEL], HKDF_SHA256.hmac_algorithm())
            .expect("the length is that of a hash");
        Self(key.into())
    }

    /// Returns the pseudonym of a login: 32 hexadecimal digits.
    pub(crate) fn pseudonym(&self, login: &Login) -> String {
        let tag = hmac::sign(&self.0, login.as_str().as_bytes());
        tag.as_ref()[..PSEUDONYM_BYTES]
            .iter()
            .fold(String::new(), |mut text, byte| {
                write!(text, "{byte:02x}").expect("writing to a String succeeds");
                text
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pseudonym_depends_on_the_login_and_the_current_key_alone() {
        let key = |current, others: &[&str]| PseudonymKey::new(&SecretKeys::of(current, others));
        let login = |text| Login::from_stored(String::from(text));
        let (one, two) = (
            "0123456789abcdef0123456789abcdef",
            "another key of 32 bytes or more!",
        );
        let pseudonym = key(one, &[]).pseudonym(&login("hunter2"));
        assert_eq!(pseudonym.len(), 32);
        assert!(!pseudonym.contains("hunter2"));
        assert_eq!(pseudonym, key(one, &[two]).pseudonym(&login("hunter2")));
        assert_ne!(pseudonym, key(two, &[one]).pseudonym(&login("hunter2")));
        assert_ne!(pseudonym, key(one, &[]).pseudonym(&login("hunter3")));
    }
}
