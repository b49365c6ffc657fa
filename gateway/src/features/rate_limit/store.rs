//! Where quotas are counted: a table that never grows.
//!
//! It has places for 262,144 counts, in buckets of 16 under a lock each. With 100,000 counts in
//! use a bucket is full with a probability of 10⁻⁴ (Poisson, mean 6.1); what finds its bucket
//! full is counted by [`super::overflow`]. Two counts are taken for one with the probability of
//! two equal 64-bit hashes, keyed so that nobody can choose them. Memory is taken bucket by
//! bucket as it is needed, 21 MiB when all are.

use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};

use parking_lot::Mutex;

use super::{Outcome, State};
use crate::moment::Moment;

const BUCKETS: usize = 1 << 14;
const PLACES: usize = 16;

/// The quotas of all rules.
pub(crate) struct QuotaStore {
    hasher: RandomState,
    buckets: Box<[Mutex<Slot>]>,
}

/// Where a bucket is, once it was needed.
#[derive(Debug, Default)]
struct Slot {
    bucket: Option<Box<Bucket>>,
    /// No place is free before that: a full bucket is known to be one without looking into it.
    full_until: Moment,
}

/// The fingerprints lie together, since they are all that most look-ups see.
#[derive(Debug, Default)]
struct Bucket {
    fingerprints: [u64; PLACES],
    /// When a place is free again, as [`Moment`]s.
    forget: [u64; PLACES],
    states: [State; PLACES],
}

/// Every place is taken by a count that still matters.
#[derive(Debug)]
pub(super) struct Full;

impl QuotaStore {
    pub(crate) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            buckets: (0..BUCKETS).map(|_| Mutex::default()).collect(),
        }
    }

    /// The hashing that keys are made with: its own in each process.
    pub(super) fn hasher(&self) -> &RandomState {
        &self.hasher
    }

    pub(super) fn hash(&self, value: impl Hash) -> u64 {
        self.hasher.hash_one(value)
    }

    /// Decides about a request by the state that is kept under `key`, with nobody in between.
    ///
    /// # Errors
    /// When there is no place for a new state.
    pub(super) fn update(
        &self,
        key: u64,
        now: Moment,
        decide: impl FnOnce(&mut State) -> Outcome,
    ) -> Result<Outcome, Full> {
        let index = usize::try_from(key % BUCKETS as u64).expect("less than the buckets");
        let mut slot = self.buckets[index].lock();
        let Slot { bucket, full_until } = &mut *slot;
        let bucket = bucket.get_or_insert_default();
        let place = match bucket.own_place(key, now) {
            Some(place) => place,
            None if now < *full_until => return Err(Full),
            None => match bucket.free_place(key, now) {
                Ok(place) => place,
                Err(until) => {
                    *full_until = until;
                    return Err(Full);
                }
            },
        };
        let outcome = decide(&mut bucket.states[place]);
        if let Outcome::Passed { forget, .. } = outcome {
            bucket.forget[place] = forget.0;
        }
        Ok(outcome)
    }
}

impl Bucket {
    /// The place that a key has, emptied where what is in it is worth nothing any more.
    fn own_place(&mut self, key: u64, now: Moment) -> Option<usize> {
        let place = search(key).find(|place| self.fingerprints[*place] == key)?;
        if self.forget[place] <= now.0 {
            self.states[place] = State::default();
        }
        Some(place)
    }

    /// A place that nobody needs any more, emptied for a key.
    ///
    /// # Errors
    /// Where there is none, when the first may be free.
    fn free_place(&mut self, key: u64, now: Moment) -> Result<usize, Moment> {
        let free = search(key).find(|place| self.forget[*place] <= now.0);
        let Some(place) = free else {
            let first = self.forget.iter().min().expect("a bucket has places");
            return Err(Moment(*first));
        };
        self.fingerprints[place] = key;
        self.states[place] = State::default();
        Ok(place)
    }
}

/// All places, in a key's own order. Most keys have the first one: what is kept there comes from memory
/// while the fingerprint is still on its way.
fn search(key: u64) -> impl Iterator<Item = usize> {
    let first =
        usize::try_from(key / BUCKETS as u64 % PLACES as u64).expect("less than the places");
    (0..PLACES).map(move |offset| (first + offset) % PLACES)
}

impl fmt::Debug for QuotaStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("QuotaStore").finish_non_exhaustive()
    }
}
