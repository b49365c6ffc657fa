//! Table of the [leases](super::lease) of this gateway, in memory of bounded size.
//!
//! A key that is removed while it has units loses them: the quota gets stricter, never laxer.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use parking_lot::Mutex;

use super::command::{Grant, LeaseReport, Prefetch, Refill, RefillOutcome, StoreCommand};
use super::key::StoreKey;
use super::lease::{LeaseDecision, LeaseState};
use super::terms::LeaseTerms;
use crate::runtime::clock::Instant;

const SHARDS: usize = 256;
/// Position of the bits of a key that select its shard: between the low ones, which select a position in the hash table of
/// the shard, and the highest seven, by which the table tells the keys of a group of positions apart.
const SHARD_SHIFT: u32 = 32;
/// As many keys in all as the store of the quotas that are not shared has slots.
const MAX_KEYS_PER_SHARD: usize = 1024;

/// Leases of all keys.
#[derive(Debug)]
pub(super) struct LeaseTable {
    shards: Box<[Mutex<Shard>]>,
}

type Shard = HashMap<u64, Entry, BuildHasherDefault<KeyHasher>>;

/// Leases of one key.
#[derive(Debug)]
struct Entry {
    key: StoreKey,
    terms: LeaseTerms,
    state: LeaseState,
    refill: Option<Refill>,
}

/// Decision about a request.
#[derive(Debug)]
pub(super) enum TableDecision {
    Decided(LeaseDecision),
    /// The request has to wait for a lease.
    Wait(Refill),
    /// There is no lease, and none can be taken.
    Unavailable,
}

impl LeaseTable {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    fn shard(&self, id: u64) -> &Mutex<Shard> {
        let index = usize::try_from((id >> SHARD_SHIFT) % SHARDS as u64);
        &self.shards[index.expect("it is less than SHARDS")]
    }

    pub(super) fn has(&self, id: u64) -> bool {
        self.shard(id).lock().contains_key(&id)
    }

    /// Decides about a request of the key `id`, atomically, and returns the command that it makes necessary.
    /// `new_key` returns the name of the key in the store, if the store can be asked.
    pub(super) fn take(
        &self,
        id: u64,
        new_key: impl Fn() -> Option<StoreKey>,
        terms: LeaseTerms,
        now: Instant,
        prefetch: Prefetch,
    ) -> (TableDecision, Option<StoreCommand>) {
        let mut shard = self.shard(id).lock();
        let entry = if let Some(entry) = shard.get_mut(&id) {
            entry
        } else {
            let Some(key) = new_key() else {
                return (TableDecision::Unavailable, None);
            };
            make_room(&mut shard, now);
            shard.entry(id).or_insert(Entry {
                key,
                terms,
                state: LeaseState::default(),
                refill: None,
            })
        };
        if let Some(decision) = entry.state.take(terms, now) {
            let is_low = prefetch == Prefetch::Permitted
                && matches!(decision, LeaseDecision::Passed { .. })
                && entry.state.is_low(terms, now)
                && entry.pending().is_none();
            let command = is_low.then(|| entry.refill(id, 0, prefetch, now).1);
            return (TableDecision::Decided(decision), command);
        }
        if let Some(refill) = entry.pending() {
            refill.join();
            return (TableDecision::Wait(refill.clone()), None);
        }
        if new_key().is_none() {
            return (TableDecision::Unavailable, None);
        }
        let (refill, command) = entry.refill(id, 1, prefetch, now);
        (TableDecision::Wait(refill), Some(command))
    }

    /// Adds what the store granted, and lets the requests go on that wait for it.
    pub(super) fn apply(&self, command: &StoreCommand, grant: &Grant) {
        let Some(refill) = &command.refill else {
            return;
        };
        {
            let mut shard = self.shard(command.id).lock();
            // The units of a key that was removed meanwhile are lost.
            if let Some(entry) = shard.get_mut(&command.id)
                && entry
                    .refill
                    .as_ref()
                    .is_some_and(|last| last.is_same(refill))
            {
                entry.state.apply(command.terms, grant);
            }
        }
        refill.complete(RefillOutcome::Applied);
    }

    /// Removes keys that are not used, and returns the commands that return the units of leases that have ended
    /// or are idle, with the reports about what was spent of them.
    pub(super) fn sweep(&self, now: Instant) -> Vec<StoreCommand> {
        let mut commands = Vec::new();
        for shard in &self.shards {
            shard.lock().retain(|id, entry| {
                if entry.pending().is_none() {
                    let idle = entry.state.take_idle(entry.terms, now);
                    commands.extend(idle.map(|report| entry.command(*id, Some(report))));
                }
                entry.pending().is_some() || !entry.state.is_unused(now)
            });
        }
        commands
    }

    /// Returns the commands that return all units, apart from those of keys whose refill is under way: it may
    /// move them to another lease.
    pub(super) fn release_all(&self, now: Instant) -> Vec<StoreCommand> {
        let mut commands = Vec::new();
        for shard in &self.shards {
            for (id, entry) in shard.lock().iter_mut() {
                if entry.pending().is_none() {
                    let report = entry.state.release(entry.terms, now);
                    commands.extend(report.map(|report| entry.command(*id, Some(report))));
                }
            }
        }
        commands
    }

    /// Returns whether a lease has been asked for that has not arrived.
    pub(super) fn has_pending_refill(&self) -> bool {
        let is_pending = |entry: &Entry| entry.pending().is_some();
        self.shards
            .iter()
            .any(|shard| shard.lock().values().any(is_pending))
    }

    pub(super) fn clear(&self) {
        for shard in &self.shards {
            shard.lock().clear();
        }
    }

    pub(super) fn len(&self) -> i64 {
        let keys: usize = self.shards.iter().map(|shard| shard.lock().len()).sum();
        i64::try_from(keys).unwrap_or(i64::MAX)
    }
}

impl Entry {
    fn pending(&self) -> Option<&Refill> {
        self.refill.as_ref().filter(|refill| !refill.is_complete())
    }

    /// Begins a refill for `need` requests.
    fn refill(
        &mut self,
        id: u64,
        need: u32,
        prefetch: Prefetch,
        now: Instant,
    ) -> (Refill, StoreCommand) {
        let refill = Refill::new(need);
        self.refill = Some(refill.clone());
        let want = match prefetch {
            Prefetch::Permitted => self.state.want(self.terms, now),
            Prefetch::Forbidden => 0,
        };
        let report = self.state.report(self.terms, now);
        let mut command = self.command(id, report);
        command.refill = Some(refill.clone());
        command.want = want;
        (refill, command)
    }

    fn command(&self, id: u64, report: Option<LeaseReport>) -> StoreCommand {
        StoreCommand {
            id,
            key: self.key,
            terms: self.terms,
            report,
            refill: None,
            want: 0,
            shutdown_return: None,
        }
    }
}

/// Removes keys from a full shard: those that are not used, else any one.
fn make_room(shard: &mut Shard, now: Instant) {
    if shard.len() < MAX_KEYS_PER_SHARD {
        return;
    }
    shard.retain(|_, entry| entry.pending().is_some() || !entry.state.is_unused(now));
    if shard.len() >= MAX_KEYS_PER_SHARD
        && let Some(id) = shard.keys().next().copied()
    {
        shard.remove(&id);
    }
}

/// Hasher of keys that are hashes already.
#[derive(Debug, Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}
