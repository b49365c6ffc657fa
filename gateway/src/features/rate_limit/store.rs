//! Where quotas are counted: a table that never grows.
//!
//! It has places for 262,144 counts, in buckets of 16 under a lock each. With 100,000 counts in
//! use a bucket is full with a probability of 10⁻⁴ (Poisson, mean 6.1); what finds its bucket
//! full is counted by [`super::overflow`]. Two counts are taken for one with the probability of
//! two equal 64-bit hashes, keyed so that nobody can choose them. Memory is taken bucket by
//! bucket as it is needed, 18 MiB when all are.

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
    /// Each once it was needed.
    buckets: Box<[Mutex<Option<Box<Bucket>>>]>,
}

/// The fingerprints lie together, since they are all that most look-ups see.
#[derive(Debug, Default)]
struct Bucket {
    fingerprints: [u64; PLACES],
    /// No place is free before that: a full bucket is known to be one without looking at its places.
    full_until: Moment,
    places: [Place; PLACES],
}

/// A cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Place {
    state: State,
    /// When it is free again.
    forget: Moment,
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
        let mut bucket = self.buckets[index].lock();
        let bucket = bucket.get_or_insert_default();
        let place = match bucket.own_place(key, now) {
            Some(place) => place,
            None => bucket.free_place(key, now)?,
        };
        let place = &mut bucket.places[place];
        let outcome = decide(&mut place.state);
        if let Outcome::Passed { forget, .. } = outcome {
            place.forget = forget;
        }
        Ok(outcome)
    }
}

impl Bucket {
    /// The place that a key has, emptied where what is in it is worth nothing any more.
    fn own_place(&mut self, key: u64, now: Moment) -> Option<usize> {
        let place = search(key).find(|place| self.fingerprints[*place] == key)?;
        if self.places[place].forget <= now {
            self.places[place].state = State::default();
        }
        Some(place)
    }

    /// A place that nobody needs any more, emptied for a key.
    fn free_place(&mut self, key: u64, now: Moment) -> Result<usize, Full> {
        if now < self.full_until {
            return Err(Full);
        }
        let free = search(key).find(|place| self.places[*place].forget <= now);
        let Some(place) = free else {
            let first = self.places.iter().map(|place| place.forget).min();
            self.full_until = first.expect("a bucket has places");
            return Err(Full);
        };
        self.fingerprints[place] = key;
        self.places[place].state = State::default();
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
