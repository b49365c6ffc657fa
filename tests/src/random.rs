//! Random bytes for names and addresses of test resources; not for secrets.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// Returns eight random bytes.
pub(crate) fn random_bytes() -> [u8; 8] {
    // The operating system seeds `RandomState` once per thread; each further one differs by a counter.
    RandomState::new().build_hasher().finish().to_le_bytes()
}
