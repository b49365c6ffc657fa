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
//!
//! At an upgrade the store is [handed over](super::hand_over): its buckets are copied one by one while requests are
//! counted, those that change meanwhile are copied again, and from one instant on nothing is counted here any more.

use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::features::rate_limit::algorithm::{AlgorithmDecision, QuotaState};
use crate::features::rate_limit::key_hasher::KeyHasher;
use crate::features::rate_limit::key_limit::{KeyLimit, KeyOwner};
use crate::runtime::clock::Instant;

pub(super) const BUCKETS: usize = 1 << BUCKET_BITS;
/// Low bits of a key, which select its bucket.
const BUCKET_BITS: u32 = 14;
pub(super) const SLOTS_PER_BUCKET: usize = 16;
/// Bits of a key that are equal for all keys of a bucket. A tag has the epoch in their place.
const EPOCH_MASK: u64 = (1 << BUCKET_BITS) - 1;

/// States of all quotas.
pub(crate) struct QuotaStore {
    /// Random, unless it was handed over before the first request.
    hasher: OnceLock<KeyHasher>,
    buckets: Box<[Mutex<Option<Box<Bucket>>>]>,
    pub(super) key_limit: KeyLimit,
    /// Written while no bucket is locked, and read under the lock of one.
    is_handed_over: AtomicBool,
}

/// Slots, apart from their tags: most look-ups read nothing but these.
#[derive(Debug, Default)]
struct Bucket {
    tags: [Tag; SLOTS_PER_BUCKET],
    /// Earliest expiry in a full bucket: until then the slots need not be searched for a free one.
    full_until: Instant,
    /// The bucket was changed since it was last copied.
    is_changed: bool,
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

/// Copy of a slot whose state has not expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotCopy {
    /// Position in the bucket, less than [`SLOTS_PER_BUCKET`].
    pub(super) position: usize,
    pub(super) tag: u64,
    pub(super) expiry: Instant,
    pub(super) state: QuotaState,
}

/// Rule by which the requests of a key are counted.
pub(super) trait CountingRule {
    /// Decides about a request by the state of its key's slot.
    fn take_from_slot(&self, state: &mut QuotaState) -> AlgorithmDecision;

    /// Decides about a request whose key has no slot.
    fn take_without_slot(&self, key: u64) -> AlgorithmDecision;

    /// Returns the state that counts what a key took while it had no slot, and its expiry.
    fn initial_state(&self, key: u64) -> (QuotaState, Instant);

    /// Returns whether requests are counted although the store was handed over.
    fn after_hand_over(&self) -> AfterHandOver;
}

/// Effect of a request on a store that was handed over to another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterHandOver {
    /// The request is counted, which the other process does not know.
    Count,
    Refuse,
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

/// Reason a request was not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotCounted {
    /// The client has used as many keys in this epoch as it may.
    KeyLimitExceeded,
    HandedOver,
}

/// Error: the counters were handed over to another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HandedOver;

impl QuotaStore {
    pub(crate) fn new() -> Self {
        Self {
            hasher: OnceLock::new(),
            buckets: (0..BUCKETS).map(|_| Mutex::default()).collect(),
            key_limit: KeyLimit::new(),
            is_handed_over: AtomicBool::new(false),
        }
    }

    /// Returns the hasher of the keys.
    pub(super) fn hasher(&self) -> KeyHasher {
        *self.hasher.get_or_init(KeyHasher::random)
    }

    /// Uses the hasher of another store. Returns false, and changes nothing, if the own one has been used.
    pub(super) fn adopt_hasher(&self, hasher: KeyHasher) -> bool {
        self.hasher.set(hasher).is_ok()
    }

    pub(super) fn hash(&self, value: impl Hash) -> u64 {
        self.hasher().hash_one(value)
    }

    /// Decides about a request of `key`, atomically. A key that gets no slot because its bucket is full
    /// is counted without one, and under the same lock: what it has taken is known to the next request,
    /// which may get a slot.
    ///
    /// # Errors
    /// Returns an error, and counts nothing, if `access` would charge more keys to a client than it
    /// may have, or if the store was handed over and the rule does not count after that.
    pub(super) fn update(
        &self,
        key: u64,
        access: SlotAccess,
        now: Instant,
        rule: &impl CountingRule,
    ) -> Result<AlgorithmDecision, NotCounted> {
        let index = usize::try_from(key & EPOCH_MASK).expect("it is less than BUCKETS");
        let mut bucket = self.buckets[index].lock();
        // The lock orders this: the last copy of the bucket is made under it, after the store was handed over.
        if self.is_handed_over.load(Ordering::Relaxed)
            && rule.after_hand_over() == AfterHandOver::Refuse
        {
            return Err(NotCounted::HandedOver);
        }
        let bucket = bucket.get_or_insert_default();
        bucket.is_changed = true;
        let existing = bucket.find(key);
        let is_live = existing.is_some_and(|slot| bucket.slots[slot].expiry > now);
        let Some(slot) = existing.or_else(|| bucket.find_expired(key, now)) else {
            return Ok(rule.take_without_slot(key));
        };
        let mut tag = Tag::new(key, bucket.tags[slot].0);
        match access {
            SlotAccess::Charged(owner) => {
                let is_charged = existing.is_some() && bucket.tags[slot].is_of_epoch(owner.epoch);
                if !is_charged && !self.key_limit.charge(self.hasher(), owner, now) {
                    return Err(NotCounted::KeyLimitExceeded);
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

    /// Refuses requests from now on, except those of rules that count after a hand-over. What is copied after this does
    /// not change by other requests any more.
    pub(super) fn hand_over(&self) {
        self.is_handed_over.store(true, Ordering::Relaxed);
    }

    /// Makes [`Self::copy_changed`] copy every bucket once.
    pub(super) fn mark_all_changed(&self) {
        for bucket in &self.buckets {
            if let Some(bucket) = bucket.lock().as_mut() {
                bucket.is_changed = true;
            }
        }
    }

    /// Copies the slots of a bucket whose states have not expired, if it was changed since it was last copied.
    pub(super) fn copy_changed(&self, index: usize, now: Instant, copies: &mut Vec<SlotCopy>) {
        copies.clear();
        let mut bucket = self.buckets[index].lock();
        let Some(bucket) = bucket.as_mut().filter(|bucket| bucket.is_changed) else {
            return;
        };
        bucket.is_changed = false;
        for (position, (tag, slot)) in bucket.tags.iter().zip(&bucket.slots).enumerate() {
            if slot.expiry > now {
                copies.push(SlotCopy {
                    position,
                    tag: tag.0,
                    expiry: slot.expiry,
                    state: slot.state,
                });
            }
        }
    }

    /// Replaces the slots of a bucket.
    ///
    /// # Panics
    /// Panics if there is no such bucket or no such slot.
    pub(super) fn restore(&self, index: usize, copies: &[SlotCopy]) {
        let mut bucket = Box::<Bucket>::default();
        for copy in copies {
            bucket.tags[copy.position] = Tag(copy.tag);
            bucket.slots[copy.position] = Slot {
                state: copy.state,
                expiry: copy.expiry,
            };
        }
        *self.buckets[index].lock() = Some(bucket);
    }

    /// Forgets all states.
    pub(super) fn clear(&self) {
        for bucket in &self.buckets {
            *bucket.lock() = None;
        }
        self.key_limit.clear();
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
