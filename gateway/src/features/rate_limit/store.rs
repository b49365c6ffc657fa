//! Quota store: a set-associative hash table of fixed size for the states of all quotas.
//!
//! It has 262,144 slots, in buckets of 16, each under a lock. With 100,000 states in use a bucket is full
//! with a probability of 6·10⁻⁴ (Poisson, mean 6.1); a key whose bucket is full is counted by the
//! [count-min sketch](super::count_min_sketch). Invariant: a slot is reused only after its state has
//! expired, so that no quota is exceeded. It is broken for two keys whose 64-bit hashes are equal:
//! they share one state. The hash is keyed, so that a client cannot choose such keys.
//!
//! Since a client chooses its paths, and a slot is free only after its state has expired, each client may
//! have a [limited number of keys](super::key_limit) in each epoch. The client is charged that is the
//! first one to use a key in an epoch.
//!
//! A bucket's memory is allocated when it is first used: about 20 MiB for all.

use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};

use parking_lot::Mutex;

use crate::features::rate_limit::algorithm::{AlgorithmDecision, QuotaState};
use crate::features::rate_limit::key_limit::{KeyLimit, KeyOwner};
use crate::runtime::clock::Instant;

const BUCKETS: usize = 1 << BUCKET_BITS;
/// Low bits of a key, which select its bucket.
const BUCKET_BITS: u32 = 14;
const SLOTS_PER_BUCKET: usize = 16;
/// Bits of a key that are equal for all keys of a bucket. A tag has the epoch in their place.
const EPOCH_MASK: u64 = (1 << BUCKET_BITS) - 1;

/// States of all quotas.
pub(crate) struct QuotaStore {
    hasher: RandomState,
    buckets: Box<[Mutex<Option<Box<Bucket>>>]>,
    key_limit: KeyLimit,
}

/// Slots, apart from their tags: most look-ups read nothing but these.
#[derive(Debug, Default)]
struct Bucket {
    tags: [Tag; SLOTS_PER_BUCKET],
    /// Earliest expiry in a full bucket: until then the slots need not be searched for a free one.
    full_until: Instant,
    slots: [Slot; SLOTS_PER_BUCKET],
}

/// Key of a slot, and the low bits of the epoch in which it was last charged to a client.
#[derive(Debug, Clone, Copy, Default)]
struct Tag(u64);

/// State and its expiry, in one cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Slot {
    state: QuotaState,
    expiry: Instant,
}

/// Rule by which the requests of a key are counted.
pub(super) trait CountingRule {
    /// Decides about a request by the state of its key's slot.
    fn take_from_slot(&self, state: &mut QuotaState) -> AlgorithmDecision;

    /// Decides about a request whose key has no slot.
    fn take_without_slot(&self, key: u64) -> AlgorithmDecision;

    /// Returns the state that counts what a key took while it had no slot, and its expiry.
    fn initial_state(&self, key: u64) -> (QuotaState, Instant);
}

/// Condition under which a key may use a slot.
#[derive(Debug, Clone, Copy)]
pub(super) enum SlotAccess {
    /// The first use in an epoch is charged to a client.
    Charged(KeyOwner),
    /// The key is one of those that exist once for each client, and are not charged.
    Free,
    /// The key uses its slot if it has one whose state has not expired.
    ExistingOnly,
}

/// Error: the client has used as many keys in this epoch as it may.
#[derive(Debug)]
pub(super) struct KeyLimitExceeded;

impl QuotaStore {
    pub(crate) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            buckets: (0..BUCKETS).map(|_| Mutex::default()).collect(),
            key_limit: KeyLimit::new(),
        }
    }

    /// Returns the hasher of the keys, with random keys of this process.
    pub(super) fn hasher(&self) -> &RandomState {
        &self.hasher
    }

    pub(super) fn hash(&self, value: impl Hash) -> u64 {
        self.hasher.hash_one(value)
    }

    /// Decides about a request of `key`, atomically. A key that gets no slot because its bucket is full
    /// is counted without one, and under the same lock: what it has taken is known to the next request,
    /// which may get a slot.
    ///
    /// # Errors
    /// Returns an error, and counts nothing, if `access` would charge more keys to a client than it
    /// may have.
    pub(super) fn update(
        &self,
        key: u64,
        access: SlotAccess,
        now: Instant,
        rule: &impl CountingRule,
    ) -> Result<AlgorithmDecision, KeyLimitExceeded> {
        let index = usize::try_from(key & EPOCH_MASK).expect("it is less than BUCKETS");
        let mut bucket = self.buckets[index].lock();
        let bucket = bucket.get_or_insert_default();
        let existing = bucket.find(key);
        let is_live = existing.is_some_and(|slot| bucket.slots[slot].expiry > now);
        let Some(slot) = existing.or_else(|| bucket.find_expired(key, now)) else {
            return Ok(rule.take_without_slot(key));
        };
        let mut tag = Tag::new(key, bucket.tags[slot].0);
        match access {
            SlotAccess::Charged(owner) => {
                let is_charged = existing.is_some() && bucket.tags[slot].is_of_epoch(owner.epoch);
                if !is_charged && !self.key_limit.charge(&self.hasher, owner, now) {
                    return Err(KeyLimitExceeded);
                }
                tag = Tag::new(key, owner.epoch);
            }
            SlotAccess::Free => {}
            SlotAccess::ExistingOnly if is_live => {}
            SlotAccess::ExistingOnly => return Ok(rule.take_without_slot(key)),
        }
        bucket.tags[slot] = tag;
        let slot = &mut bucket.slots[slot];
        if !is_live {
            (slot.state, slot.expiry) = rule.initial_state(key);
        }
        let decision = rule.take_from_slot(&mut slot.state);
        if let AlgorithmDecision::Passed { expiry, .. } = decision {
            slot.expiry = expiry;
        }
        Ok(decision)
    }
}

impl Bucket {
    /// Returns the slot of a key.
    fn find(&self, key: u64) -> Option<usize> {
        probe_sequence(key).find(|slot| self.tags[*slot].is_of_key(key))
    }

    /// Returns a slot whose state has expired.
    fn find_expired(&mut self, key: u64, now: Instant) -> Option<usize> {
        if now < self.full_until {
            return None;
        }
        let expired = probe_sequence(key).find(|slot| self.slots[*slot].expiry <= now);
        if expired.is_none() {
            let earliest = self.slots.iter().map(|slot| slot.expiry).min();
            self.full_until = earliest.expect("a bucket has slots");
        }
        expired
    }
}

impl Tag {
    fn new(key: u64, epoch: u64) -> Self {
        Self(key & !EPOCH_MASK | epoch & EPOCH_MASK)
    }

    fn is_of_key(self, key: u64) -> bool {
        (self.0 ^ key) & !EPOCH_MASK == 0
    }

    fn is_of_epoch(self, epoch: u64) -> bool {
        (self.0 ^ epoch) & EPOCH_MASK == 0
    }
}

/// Returns all slots in the order in which a key is looked for. Most keys are in their first slot: the
/// processor can fetch its state together with the tag.
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
