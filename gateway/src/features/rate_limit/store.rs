//! Quota store: a set-associative hash table of fixed size for the states of all quotas.
//!
//! It has 262,144 slots, in buckets of 16, each under a lock. With 100,000 states in use a bucket is full
//! with a probability of 6·10⁻⁴ (Poisson, mean 6.1); a key whose bucket is full is counted by the
//! [count-min sketch](super::count_min_sketch). Invariant: a slot is reused only after its state has
//! expired, so that no quota is exceeded. It is broken for two keys whose 64-bit hashes are equal:
//! they share one state. The hash is keyed, so that a client cannot choose such keys.
//!
//! A bucket's memory is allocated when it is first used: about 20 MiB for all.

use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};

use parking_lot::Mutex;

use crate::features::rate_limit::algorithm::{AlgorithmDecision, QuotaState};
use crate::runtime::clock::Instant;

const BUCKETS: usize = 1 << 14;
const SLOTS_PER_BUCKET: usize = 16;

/// States of all quotas.
pub(crate) struct QuotaStore {
    hasher: RandomState,
    buckets: Box<[Mutex<Option<Box<Bucket>>>]>,
}

/// Slots, apart from their fingerprints: most look-ups read nothing but these.
#[derive(Debug, Default)]
struct Bucket {
    /// Hash of the key in each slot.
    fingerprints: [u64; SLOTS_PER_BUCKET],
    /// Earliest expiry in a full bucket: until then the slots need not be searched for a free one.
    full_until: Instant,
    slots: [Slot; SLOTS_PER_BUCKET],
}

/// State and its expiry, in one cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Slot {
    state: QuotaState,
    expiry: Instant,
}

/// Error: every slot of a key's bucket holds a state that has not expired.
#[derive(Debug)]
pub(super) struct BucketFull;

impl QuotaStore {
    pub(crate) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            buckets: (0..BUCKETS).map(|_| Mutex::default()).collect(),
        }
    }

    /// Returns the hasher of the keys, with random keys of this process.
    pub(super) fn hasher(&self) -> &RandomState {
        &self.hasher
    }

    pub(super) fn hash(&self, value: impl Hash) -> u64 {
        self.hasher.hash_one(value)
    }

    /// Decides about a request by the state of `key`, atomically.
    ///
    /// # Errors
    /// Returns an error if there is no slot for a new key.
    pub(super) fn update(
        &self,
        key: u64,
        now: Instant,
        decide: impl FnOnce(&mut QuotaState) -> AlgorithmDecision,
    ) -> Result<AlgorithmDecision, BucketFull> {
        let index = usize::try_from(key % BUCKETS as u64).expect("it is less than BUCKETS");
        let mut bucket = self.buckets[index].lock();
        let bucket = bucket.get_or_insert_default();
        let slot = match bucket.find(key, now) {
            Some(slot) => slot,
            None => bucket.allocate(key, now)?,
        };
        let slot = &mut bucket.slots[slot];
        let decision = decide(&mut slot.state);
        if let AlgorithmDecision::Passed { expiry, .. } = decision {
            slot.expiry = expiry;
        }
        Ok(decision)
    }
}

impl Bucket {
    /// Returns the slot of a key. An expired state is reset.
    fn find(&mut self, key: u64, now: Instant) -> Option<usize> {
        let slot = probe_sequence(key).find(|slot| self.fingerprints[*slot] == key)?;
        if self.slots[slot].expiry <= now {
            self.slots[slot].state = QuotaState::default();
        }
        Some(slot)
    }

    /// Assigns an expired slot to a key, and resets its state.
    fn allocate(&mut self, key: u64, now: Instant) -> Result<usize, BucketFull> {
        if now < self.full_until {
            return Err(BucketFull);
        }
        let expired = probe_sequence(key).find(|slot| self.slots[*slot].expiry <= now);
        let Some(slot) = expired else {
            let earliest = self.slots.iter().map(|slot| slot.expiry).min();
            self.full_until = earliest.expect("a bucket has slots");
            return Err(BucketFull);
        };
        self.fingerprints[slot] = key;
        self.slots[slot].state = QuotaState::default();
        Ok(slot)
    }
}

/// Returns all slots in the order in which a key is looked for. Most keys are in their first slot: the
/// processor can fetch its state together with the fingerprint.
fn probe_sequence(key: u64) -> impl Iterator<Item = usize> {
    let first = usize::try_from(key / BUCKETS as u64 % SLOTS_PER_BUCKET as u64)
        .expect("it is less than SLOTS_PER_BUCKET");
    (0..SLOTS_PER_BUCKET).map(move |offset| (first + offset) % SLOTS_PER_BUCKET)
}

impl fmt::Debug for QuotaStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("QuotaStore").finish_non_exhaustive()
    }
}
