//! Quotas that several gateways share through a store, by leases (ADR 0009).
//!
//! A gateway takes a [lease](lease) of some units of a key's quota: the store deducts them in advance, and
//! the gateway spends them without asking it. Its next command for the key reports [how long ago](spent) they were spent.
//!
//! Invariant: a unit is spent at most once, after the store deducted it and before its lease ends, so that no number of
//! gateways exceeds a quota. It is broken by a store that loses what it acknowledged, and by a clock of the store that is set
//! forward.
//!
//! This module knows no connection: commands for the store are in a queue that the task of
//! [`lease_store`](crate::lease_store) empties, and what the store granted comes back by
//! [`SharedQuotas::apply`].

mod command;
mod decision;
mod key;
mod lease;
mod pause_detector;
mod ready;
mod script;
mod spent;
#[cfg(test)]
pub(crate) mod store_model;
mod table;
mod terms;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{sleep, timeout_at};

use crate::runtime::clock::Instant;
use crate::telemetry::metrics::QuotaStoreMetrics;
#[cfg(test)]
pub(crate) use command::LeaseReport;
use command::{Grant, Prefetch};
pub(crate) use command::{LeaseIdentity, StoreCommand};
pub(super) use decision::LeaseDecision;
pub(crate) use key::{HashKey, KeyWriter, StoreKey};
use pause_detector::PauseDetector;
pub(crate) use script::{ScriptArguments, ScriptReply};
#[cfg(test)]
pub(crate) use spent::SpentUnits;
use table::{LeaseTable, TableDecision};
pub(crate) use terms::LeaseTerms;

/// Longest time that a request waits for the store after a pause of the process.
const RESUME_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval at which such a request asks for a lease again.
const RETRY_DELAY: Duration = Duration::from_millis(20);

/// Values of the availability of the store.
const UNKNOWN: u8 = 0;
const AVAILABLE: u8 = 1;
const UNAVAILABLE: u8 = 2;

/// Leases of this gateway, and the queue of its commands for the store.
#[derive(Debug)]
pub(crate) struct SharedQuotas {
    table: LeaseTable,
    hash_key: ArcSwapOption<HashKey>,
    availability: AtomicU8,
    is_draining: AtomicBool,
    gateways: AtomicU32,
    commands: UnboundedSender<StoreCommand>,
    queue: Mutex<UnboundedReceiver<StoreCommand>>,
    /// Shared by the commands of a shutdown that have not ended.
    returns: Arc<()>,
    pauses: PauseDetector,
    pub(crate) metrics: QuotaStoreMetrics,
}

impl SharedQuotas {
    pub(crate) fn new(metrics: QuotaStoreMetrics) -> Self {
        let (commands, queue) = mpsc::unbounded_channel();
        Self {
            table: LeaseTable::new(),
            hash_key: ArcSwapOption::empty(),
            availability: AtomicU8::new(UNKNOWN),
            is_draining: AtomicBool::new(false),
            gateways: AtomicU32::new(1),
            commands,
            queue: Mutex::new(queue),
            returns: Arc::default(),
            pauses: PauseDetector::default(),
            metrics,
        }
    }

    /// Returns whether this gateway has an entry for a key.
    pub(super) fn has(&self, id: u64) -> bool {
        self.table.has(id)
    }

    /// Decides about a request by the units of a lease that are ready to be spent. Returns `None` if that takes [`Self::take`].
    pub(super) fn take_ready(&self, id: u64, now: Instant) -> Option<LeaseDecision> {
        self.table.take_ready(id, now)
    }

    /// Decides about a request by the lease of a key. A request that finds none waits for one, until `timeout`
    /// has passed. Requests of a key share one command. Returns the decision and its instant, or `None` if the store
    /// cannot be used, or has not responded in time.
    pub(super) async fn take(
        &self,
        id: u64,
        key: impl Fn(&HashKey) -> StoreKey,
        terms: LeaseTerms,
        timeout: Duration,
    ) -> Option<(LeaseDecision, Instant)> {
        let mut now = Instant::now();
        let mut deadline = now.saturating_add(timeout);
        let mut is_extended = false;
        loop {
            match self.try_take(id, &key, terms, now) {
                TableDecision::Decided(decision) => return Some((decision, now)),
                TableDecision::Unavailable => {}
                TableDecision::Wait(refill) => {
                    let completed = timeout_at(deadline.to_tokio(), refill.completed());
                    if completed.await.is_ok() && !refill.has_failed() {
                        now = Instant::now();
                        continue;
                    }
                }
            }
            now = Instant::now();
            if !is_extended && self.pauses.was_paused(now) {
                is_extended = true;
                deadline = now.saturating_add(timeout.max(RESUME_TIMEOUT));
            }
            if !is_extended || now >= deadline {
                return None;
            }
            sleep(RETRY_DELAY).await;
            now = Instant::now();
        }
    }

    fn try_take(
        &self,
        id: u64,
        key: impl Fn(&HashKey) -> StoreKey,
        terms: LeaseTerms,
        now: Instant,
    ) -> TableDecision {
        let new_key = || {
            let hash_key = self.hash_key.load();
            let hash_key = hash_key.as_ref()?;
            self.is_available().then(|| key(hash_key))
        };
        let (decision, command) = self.table.take(id, new_key, terms, now, self.prefetch());
        if let Some(command) = command {
            self.send(command);
        }
        decision
    }

    fn prefetch(&self) -> Prefetch {
        if self.is_available() && !self.is_draining.load(Ordering::Relaxed) {
            Prefetch::Permitted
        } else {
            Prefetch::Forbidden
        }
    }

    fn send(&self, command: StoreCommand) {
        // The receiver lives as long as this value.
        let _ = self.commands.send(command);
    }

    /// Returns the queue of commands. One task at a time empties it.
    pub(crate) async fn queue(&self) -> MutexGuard<'_, UnboundedReceiver<StoreCommand>> {
        self.queue.lock().await
    }

    /// Makes what the store granted available to requests.
    pub(crate) fn apply(&self, command: &StoreCommand, grant: &Grant) {
        self.metrics.leased_units.inc_by(grant.granted.into());
        self.table.apply(command, grant);
    }

    /// Queues the return of what idle or ended leases have left. Called several times a second.
    pub(crate) fn return_idle(&self, now: Instant) {
        self.pauses.tick(now);
        for command in self.table.sweep(now) {
            self.send(command);
        }
        if self.is_draining.load(Ordering::Relaxed) {
            // Leases that were on their way when the drain began.
            self.return_all();
        }
        self.metrics.leases.set(self.table.len());
    }

    /// Queues the return of all leases, and from now on takes no more than requests wait for.
    pub(crate) fn begin_drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
        self.return_all();
    }

    /// Queues the return of all leases.
    pub(crate) fn return_all(&self) {
        for mut command in self.table.release_all(Instant::now()) {
            command.shutdown_return = Some(Arc::clone(&self.returns));
            self.send(command);
        }
    }

    /// Returns whether the store has responded to all commands of [`Self::return_all`], or cannot, and no lease is
    /// on its way.
    pub(crate) fn has_returned_leases(&self) -> bool {
        Arc::strong_count(&self.returns) == 1 && !self.table.has_pending_refill()
    }

    pub(crate) fn is_available(&self) -> bool {
        self.availability.load(Ordering::Relaxed) == AVAILABLE
    }

    /// Records that the store responded to a heartbeat. Returns whether it was unavailable before.
    pub(crate) fn record_heartbeat(&self, hash_key: HashKey, gateways: u32) -> bool {
        self.gateways.store(gateways.max(1), Ordering::Relaxed);
        let previous = self.hash_key.load();
        if previous.as_deref() != Some(&hash_key) {
            // Another gateway set the key, after the store was emptied. Leases are of keys that no gateway
            // uses any more.
            self.hash_key.store(Some(Arc::new(hash_key)));
            self.table.clear();
        }
        self.metrics.up.set(1);
        self.availability.swap(AVAILABLE, Ordering::Relaxed) != AVAILABLE
    }

    /// Records that the store cannot be used, unless a pause of this process may be the reason. Returns whether
    /// that is news.
    pub(crate) fn record_failure(&self) -> bool {
        if self.is_available() && self.was_paused() {
            return false;
        }
        self.metrics.up.set(0);
        self.availability.swap(UNAVAILABLE, Ordering::Relaxed) != UNAVAILABLE
    }

    /// Returns whether this process was paused a short time ago, for which time limits have passed.
    pub(crate) fn was_paused(&self) -> bool {
        self.pauses.was_paused(Instant::now())
    }

    /// Returns the key to propose to the store.
    pub(crate) fn proposed_hash_key(&self) -> HashKey {
        match self.hash_key.load().as_deref() {
            Some(key) => key.clone(),
            None => HashKey::generate(),
        }
    }

    /// Returns the number of gateways that share the store.
    pub(crate) fn gateways(&self) -> u32 {
        self.gateways.load(Ordering::Relaxed)
    }
}
