//! Commands for the store, and its grants.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::key::StoreKey;
use super::spent::SpentUnits;
use super::terms::LeaseTerms;
use crate::runtime::clock::Instant;

/// Command for the store: reports about the lease of a key, takes a new one, or both, in one step.
#[derive(Debug)]
pub(crate) struct StoreCommand {
    /// Entry of the [table](super::table) that the command is for.
    pub(super) id: u64,
    pub(crate) key: StoreKey,
    pub(crate) terms: LeaseTerms,
    pub(crate) report: Option<LeaseReport>,
    pub(super) refill: Option<Refill>,
    /// Units that the gateway would like to have.
    pub(crate) want: u32,
    /// Counts the commands that a shutdown waits for.
    pub(super) shutdown_return: Option<Arc<()>>,
}

/// Report about a lease: units that were spent since the last report, and what is left of it. A unit is in one report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LeaseReport {
    pub(crate) identity: LeaseIdentity,
    pub(crate) spent: SpentUnits,
    /// Unused units that the gateway keeps: the store moves them to the new lease.
    pub(crate) kept: u32,
    /// Unused units that go back.
    pub(crate) returned: u32,
    pub(crate) made: Instant,
}

/// Identity of a lease in the store. A report counts only for the state that its units were deducted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LeaseIdentity {
    pub(crate) incarnation: i64,
    pub(crate) slot: i64,
}

/// Units that the store granted, with their validity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Instant before the command was sent.
    pub(crate) sent: Instant,
    pub(crate) received: Instant,
    /// Units that requests waited for when it was sent.
    pub(crate) need: u32,
    /// Units that the gateway would have liked to have.
    pub(crate) want: u32,
    pub(crate) granted: u32,
    /// Units of the lease before that are in this one now.
    pub(crate) kept: u32,
    /// Units that the store has left.
    pub(crate) remaining: u32,
    pub(crate) valid: Duration,
    /// Time after which the store has units again, if it granted fewer than needed.
    pub(crate) retry_after: Duration,
    /// Time after which the whole quota is available again.
    pub(crate) reset: Duration,
    pub(crate) identity: LeaseIdentity,
    /// Time until the first departure from a leaky bucket.
    pub(crate) first_departure: Duration,
}

impl StoreCommand {
    /// Returns the number of units that requests wait for.
    pub(crate) fn need(&self) -> u32 {
        self.refill.as_ref().map_or(0, Refill::need)
    }

    /// Returns whether the command takes a lease.
    pub(crate) fn is_refill(&self) -> bool {
        self.refill.is_some()
    }
}

impl Drop for StoreCommand {
    /// Lets requests go on that wait for a command that ends without a response.
    fn drop(&mut self) {
        if let Some(refill) = &self.refill {
            refill.complete(RefillOutcome::Failed);
        }
    }
}

/// Permission to take units that no request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefetch {
    Permitted,
    Forbidden,
}

/// Outcome of a refill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RefillOutcome {
    Applied,
    Failed,
}

/// Refill that is under way, which requests wait for. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Refill(Arc<RefillState>);

#[derive(Debug)]
struct RefillState {
    need: AtomicU32,
    has_failed: AtomicBool,
    /// Closed when the refill is complete.
    completed: Semaphore,
}

impl Refill {
    /// Creates a refill for `need` requests.
    pub(super) fn new(need: u32) -> Self {
        Self(Arc::new(RefillState {
            need: AtomicU32::new(need),
            has_failed: AtomicBool::new(false),
            completed: Semaphore::new(0),
        }))
    }

    /// Counts a further request that waits.
    pub(super) fn join(&self) {
        self.0.need.fetch_add(1, Ordering::Relaxed);
    }

    fn need(&self) -> u32 {
        self.0.need.load(Ordering::Relaxed)
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn is_complete(&self) -> bool {
        self.0.completed.is_closed()
    }

    pub(super) fn has_failed(&self) -> bool {
        self.0.has_failed.load(Ordering::Acquire)
    }

    /// Waits until the refill is complete.
    pub(super) async fn completed(&self) {
        // It has no permits: this returns when it is closed.
        let _ = self.0.completed.acquire().await;
    }

    /// Lets the requests go on. Only the first call has an effect.
    pub(super) fn complete(&self, outcome: RefillOutcome) {
        if !self.is_complete() {
            let has_failed = outcome == RefillOutcome::Failed;
            self.0.has_failed.store(has_failed, Ordering::Release);
            self.0.completed.close();
        }
    }
}
