//! Table of the [leases](super::lease) of this gateway, in memory of bounded size.
//!
//! Most decisions need one cache line of it, that of the key and its [ready units](super::ready).
//!
//! A key that is removed while it has units loses them: the quota gets stricter, never laxer.

use std::mem;

use hashbrown::HashTable;
use parking_lot::Mutex;

use super::command::{Grant, LeaseReport, Prefetch, Refill, RefillOutcome, StoreCommand};
use super::decision::LeaseDecision;
use super::key::StoreKey;
use super::lease::LeaseState;
use super::ready::ReadyUnits;
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

type Shard = HashTable<Entry>;

/// Key and its lease.
#[derive(Debug)]
#[repr(align(64))]
struct Entry {
    /// Hash of what selects the key, which is its hash in the table as well.
    id: u64,
    ready: ReadyUnits,
    lease: Box<Lease>,
}

const _: () = assert!(size_of::<Entry>() == 64, "an entry is one cache line");

/// Lease of a key, and the refill that is under way.
#[derive(Debug)]
struct Lease {
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
        find(&mut self.shard(id).lock(), id).is_some()
    }

    /// Decides about a request of the key `id` as [`Self::take`] does, if its ready units suffice.
    pub(super) fn take_ready(&self, id: u64, now: Instant) -> Option<LeaseDecision> {
        find(&mut self.shard(id).lock(), id)?.ready.take(now)
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
        let entry = if let Some(entry) = find(&mut shard, id) {
            entry
        } else {
            let Some(key) = new_key() else {
                return (TableDecision::Unavailable, None);
            };
            make_room(&mut shard, now);
            let entry = Entry::new(id, key, terms);
            shard.insert_unique(id, entry, |entry| entry.id).into_mut()
        };
        if let Some(decision) = entry.ready.take(now) {
            return (TableDecision::Decided(decision), None);
        }
        let lease = entry.lease();
        if let Some(decision) = lease.state.take(terms, now) {
            let is_low = prefetch == Prefetch::Permitted
                && matches!(decision, LeaseDecision::Passed { .. })
                && lease.state.is_low(terms, now)
                && lease.pending().is_none();
            let command = is_low.then(|| lease.refill(id, 0, prefetch, now).1);
            entry.ready = lease.state.ready_units(terms);
            return (TableDecision::Decided(decision), command);
        }
        if let Some(refill) = lease.pending() {
            refill.join();
            return (TableDecision::Wait(refill.clone()), None);
        }
        if new_key().is_none() {
            return (TableDecision::Unavailable, None);
        }
        let (refill, command) = lease.refill(id, 1, prefetch, now);
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
            if let Some(lease) = find(&mut shard, command.id).map(Entry::lease)
                && lease
                    .refill
                    .as_ref()
                    .is_some_and(|last| last.is_same(refill))
            {
                lease.state.apply(command.terms, grant);
            }
        }
        refill.complete(RefillOutcome::Applied);
    }

    /// Removes keys that are not used, and returns the commands that return the units of leases that have ended
    /// or are idle, with the reports about what was spent of them.
    pub(super) fn sweep(&self, now: Instant) -> Vec<StoreCommand> {
        let mut commands = Vec::new();
        for shard in &self.shards {
            shard.lock().retain(|entry| {
                if !entry.ready.is_in_use(now) {
                    let id = entry.id;
                    let lease = entry.lease();
                    if lease.pending().is_none() {
                        let idle = lease.state.take_idle(lease.terms, now);
                        commands.extend(idle.map(|report| lease.command(id, Some(report))));
                    }
                }
                entry.is_needed(now)
            });
        }
        commands
    }

    /// Returns the commands that return all units, apart from those of keys whose refill is under way: it may
    /// move them to another lease.
    pub(super) fn release_all(&self, now: Instant) -> Vec<StoreCommand> {
        let mut commands = Vec::new();
        for shard in &self.shards {
            for entry in shard.lock().iter_mut() {
                let id = entry.id;
                let lease = entry.lease();
                if lease.pending().is_none() {
                    let report = lease.state.release(lease.terms, now);
                    commands.extend(report.map(|report| lease.command(id, Some(report))));
                }
            }
        }
        commands
    }

    /// Returns whether a lease has been asked for that has not arrived.
    pub(super) fn has_pending_refill(&self) -> bool {
        let is_pending = |entry: &Entry| entry.lease.pending().is_some();
        self.shards
            .iter()
            .any(|shard| shard.lock().iter().any(is_pending))
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
    fn new(id: u64, key: StoreKey, terms: LeaseTerms) -> Self {
        let lease = Lease {
            key,
            terms,
            state: LeaseState::default(),
            refill: None,
        };
        Self {
            id,
            ready: ReadyUnits::default(),
            lease: Box::new(lease),
        }
    }

    /// Returns the lease, which learns what was spent of the ready units. The key has none any more.
    fn lease(&mut self) -> &mut Lease {
        let ready = mem::take(&mut self.ready);
        self.lease.state.record(&ready);
        &mut self.lease
    }

    /// Returns whether anything would be lost with the entry.
    fn is_needed(&mut self, now: Instant) -> bool {
        if self.ready.is_in_use(now) {
            return true;
        }
        let lease = self.lease();
        lease.pending().is_some() || !lease.state.is_unused(now)
    }
}

impl Lease {
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

fn find(shard: &mut Shard, id: u64) -> Option<&mut Entry> {
    shard.find_mut(id, |entry| entry.id == id)
}

/// Removes keys from a full shard: those that are not used, else any one.
fn make_room(shard: &mut Shard, now: Instant) {
    if shard.len() < MAX_KEYS_PER_SHARD {
        return;
    }
    shard.retain(|entry| entry.is_needed(now));
    if shard.len() >= MAX_KEYS_PER_SHARD {
        shard.extract_if(|_| true).next();
    }
}
