//! Keyed hash of what selects a counter: SipHash-1-3 (Aumasson and Bernstein 2012).
//!
//! Its key is random, so that clients cannot choose values with equal hashes, and is handed over at an
//! [upgrade](super::hand_over), so that the new process finds the counters of the old one.

use std::fmt;
use std::hash::BuildHasher;

use aws_lc_rs::rand;
use siphasher::sip::SipHasher13;

/// Key of the hash.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyHasher {
    pub(super) key: [u64; 2],
}

impl KeyHasher {
    /// Key that everyone knows, for values that clients do not choose. Their hashes are the same in every process.
    pub(super) const PUBLIC: Self = Self { key: [0, 0] };

    /// Returns a random key.
    ///
    /// # Panics
    /// Panics if the system has no source of randomness.
    pub(super) fn random() -> Self {
        let mut halves = [[0; 8]; 2];
        for half in &mut halves {
            rand::fill(half).expect("the system has a source of randomness");
        }
        Self {
            key: halves.map(u64::from_le_bytes),
        }
    }
}

impl BuildHasher for KeyHasher {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        let [first, second] = self.key;
        SipHasher13::new_with_keys(first, second)
    }
}

impl fmt::Debug for KeyHasher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("KeyHasher(…)")
    }
}
