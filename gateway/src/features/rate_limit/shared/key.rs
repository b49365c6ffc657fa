//! Keys of quotas in the store: a keyed hash of pattern, rule and what `per` names.
//!
//! The hash is HMAC-SHA-256 (RFC 2104), truncated to 128 bits, under a random key that the gateways share. So a
//! client can neither choose a key nor find two values with the same one, and the store contains no address.
//! The parts are encoded with their lengths: two sequences of parts are never the same text.

use std::fmt::{self, Write as _};

use aws_lc_rs::hmac;
use aws_lc_rs::rand;

/// Length of the shared key: that of the hash function's output (RFC 2104, section 3).
const HASH_KEY_BYTES: usize = 32;
const STORE_KEY_BYTES: usize = 16;

/// Random key that all gateways of a keyspace hash with.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct HashKey([u8; HASH_KEY_BYTES]);

/// Hash that names a quota of a client in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct StoreKey(pub(crate) [u8; STORE_KEY_BYTES]);

/// Writer of the parts that a [`StoreKey`] is the hash of.
#[derive(Debug)]
pub(crate) struct KeyWriter(Vec<u8>);

impl HashKey {
    /// Generates a random key.
    ///
    /// # Panics
    /// Panics if the system has no source of randomness.
    pub(crate) fn generate() -> Self {
        let mut bytes = [0; HASH_KEY_BYTES];
        rand::fill(&mut bytes).expect("the system has a source of randomness");
        Self(bytes)
    }

    /// Returns the key in hexadecimal form, as the store has it.
    pub(crate) fn to_hex(&self) -> String {
        hex(&self.0)
    }

    /// Parses the hexadecimal form. Returns `None` if it is no key.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        if text.len() != 2 * HASH_KEY_BYTES {
            return None;
        }
        let mut bytes = [0; HASH_KEY_BYTES];
        for (byte, digits) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            let digits = str::from_utf8(digits).ok()?;
            *byte = u8::from_str_radix(digits, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl StoreKey {
    /// Returns the key in hexadecimal form.
    pub(crate) fn to_hex(self) -> String {
        hex(&self.0)
    }
}

impl KeyWriter {
    /// Begins a key of a purpose, so that keys of two purposes never meet.
    pub(crate) fn new(purpose: u8) -> Self {
        Self(vec![purpose])
    }

    pub(crate) fn part(&mut self, part: &[u8]) {
        self.number(part.len() as u64);
        self.0.extend_from_slice(part);
    }

    pub(crate) fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    pub(crate) fn finish(self, key: &HashKey) -> StoreKey {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key.0);
        let tag = hmac::sign(&key, &self.0);
        let mut hash = [0; STORE_KEY_BYTES];
        hash.copy_from_slice(&tag.as_ref()[..STORE_KEY_BYTES]);
        StoreKey(hash)
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
    }
    text
}

impl fmt::Debug for HashKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("HashKey(…)")
    }
}
