//! Slots for the connections of an endpoint: a limit of concurrent exchanges, as Envoy's circuit breaker
//! thresholds `max_connections` and `max_pending_requests` are.
//!
//! An exchange holds a slot from before its connection is taken from the pool or opened until after it
//! is put back or closed. A connection is opened only if none is idle, so that there are never more
//! connections, busy and idle together, than slots. Requests wait in the order of their arrival.

use std::time::Duration;

use crate::config::EndpointLimits;
use crate::runtime::sync::{AtomicUsize, Notify, Ordering, timeout};

/// No slot became free in time, or too many requests wait already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overflow;

/// Counters of the slots of one endpoint.
#[derive(Debug, Default)]
pub(super) struct ConnectionSlots {
    used: AtomicUsize,
    /// Limit of `used` in the configuration of the latest request, which those that wait have too.
    max: AtomicUsize,
    pending: AtomicUsize,
    /// Notified when a slot is free and requests wait.
    freed: Notify,
}

/// Guard of a request that waits for a slot.
struct Pending<'s>(&'s ConnectionSlots);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::SeqCst);
    }
}

impl ConnectionSlots {
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::SeqCst)
    }

    pub(super) fn pending(&self) -> usize {
        self.pending.load(Ordering::SeqCst)
    }

    /// Takes a slot, and returns whether one was free. Requests that wait come first.
    pub(super) fn try_acquire(&self, limits: EndpointLimits) -> bool {
        if self.max.load(Ordering::Relaxed) != limits.max_connections {
            self.max.store(limits.max_connections, Ordering::SeqCst);
        }
        self.pending() == 0 && self.take()
    }

    /// Waits for a slot after [`Self::try_acquire`] has found none.
    ///
    /// # Errors
    /// Returns an error after `limit`, or at once if too many requests wait already.
    pub(super) async fn acquire(
        &self,
        limits: EndpointLimits,
        limit: Duration,
    ) -> Result<(), Overflow> {
        let before = self.pending.fetch_add(1, Ordering::SeqCst);
        let pending = Pending(self);
        if before >= limits.max_pending_requests {
            return Err(Overflow);
        }
        // The limit may have been raised since the others began to wait.
        self.wake_next();
        let acquired = async {
            let mut is_next = before == 0;
            while !(is_next && self.take()) {
                self.freed.notified().await;
                is_next = true;
            }
        };
        let result = timeout(limit, acquired).await;
        drop(pending);
        self.wake_next();
        result.map_err(|_| Overflow)
    }

    /// Gives a slot back.
    pub(super) fn release(&self) {
        self.used.fetch_sub(1, Ordering::SeqCst);
        // A request that begins to wait after this finds the slot.
        self.wake_next();
    }

    fn take(&self) -> bool {
        let max = self.max.load(Ordering::SeqCst);
        let increment = |used| (used < max).then_some(used + 1);
        self.used
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, increment)
            .is_ok()
    }

    /// Wakes the request that has waited longest, if there is one and a slot is free.
    fn wake_next(&self) {
        if self.pending() > 0 && self.used() < self.max.load(Ordering::SeqCst) {
            self.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    const LIMITS: EndpointLimits = EndpointLimits {
        max_connections: 1,
        max_pending_requests: 2,
    };
    const TIMEOUT: Duration = Duration::from_mins(1);
    const SHORT_TIMEOUT: Duration = Duration::from_millis(10);

    #[tokio::test]
    async fn a_freed_slot_goes_to_the_request_that_has_waited_longest() {
        let slots = ConnectionSlots::default();
        assert!(slots.try_acquire(LIMITS));
        let mut cx = Context::from_waker(Waker::noop());
        let mut first = pin!(slots.acquire(LIMITS, TIMEOUT));
        assert!(first.as_mut().poll(&mut cx).is_pending());
        let mut second = pin!(slots.acquire(LIMITS, SHORT_TIMEOUT));
        assert!(second.as_mut().poll(&mut cx).is_pending());
        assert_eq!(slots.acquire(LIMITS, TIMEOUT).await, Err(Overflow));
        slots.release();
        assert!(!slots.try_acquire(LIMITS), "others have waited");
        assert!(first.as_mut().poll(&mut cx).is_ready());
        assert_eq!((slots.used(), slots.pending()), (1, 1));
        assert_eq!(second.await, Err(Overflow), "after the timeout");
        assert_eq!((slots.used(), slots.pending()), (1, 0));
    }

    #[tokio::test]
    async fn a_request_that_gives_up_passes_its_slot_on() {
        let slots = ConnectionSlots::default();
        assert!(slots.try_acquire(LIMITS));
        let mut cx = Context::from_waker(Waker::noop());
        let mut first = Box::pin(slots.acquire(LIMITS, TIMEOUT));
        assert!(first.as_mut().poll(&mut cx).is_pending());
        let mut second = pin!(slots.acquire(LIMITS, TIMEOUT));
        assert!(second.as_mut().poll(&mut cx).is_pending());
        slots.release();
        drop(first);
        assert_eq!(second.await, Ok(()));
        assert_eq!((slots.used(), slots.pending()), (1, 0));
    }

    #[tokio::test]
    async fn a_raised_limit_lets_requests_that_wait_pass() {
        let slots = ConnectionSlots::default();
        assert!(slots.try_acquire(LIMITS));
        let mut cx = Context::from_waker(Waker::noop());
        let mut first = pin!(slots.acquire(LIMITS, TIMEOUT));
        assert!(first.as_mut().poll(&mut cx).is_pending());
        let raised = EndpointLimits {
            max_connections: 3,
            ..LIMITS
        };
        assert!(!slots.try_acquire(raised), "another has waited");
        let mut second = pin!(slots.acquire(raised, TIMEOUT));
        assert!(second.as_mut().poll(&mut cx).is_pending());
        assert_eq!(first.await, Ok(()));
        assert_eq!(second.await, Ok(()));
        assert_eq!((slots.used(), slots.pending()), (3, 0));
    }
}
