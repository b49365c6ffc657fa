//! The models, which panic in an interleaving in which an invariant does not hold, or in which a thread waits without end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use loom::future::block_on;
use loom::thread;

use crate::config::EndpointLimits;
use crate::connection_slots::{ConnectionSlots, Overflow};
use crate::event_interval::EventInterval;
use crate::pause_detector::PauseDetector;
use crate::retry_budget::RetryBudget;
use crate::runtime::clock::Instant;

/// Preemptions of one execution. More find few further faults (Musuvathi and Qadeer 2007), and take far longer.
const MAX_PREEMPTIONS: usize = 3;
const LIMITS: EndpointLimits = EndpointLimits {
    max_connections: 1,
    max_pending_requests: 2,
};
const NO_LIMIT: Duration = Duration::from_mins(1);
const SECOND_NS: u64 = 1_000_000_000;

/// Runs a model in each interleaving. Returns their number.
fn explore(model: impl Fn() + Send + Sync + 'static) -> usize {
    let executions = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&executions);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(MAX_PREEMPTIONS);
    builder.check(move || {
        // An atomic of the standard library, which is no part of the model.
        counter.fetch_add(1, Ordering::Relaxed);
        model();
    });
    executions.load(Ordering::Relaxed)
}

/// Takes a slot, waits for it if there is none, and gives it back.
fn use_slot(
    slots: &ConnectionSlots,
    limits: EndpointLimits,
    timeout: Duration,
) -> Result<(), Overflow> {
    if !slots.try_acquire(limits) {
        block_on(slots.acquire(limits, timeout))?;
    }
    assert!(slots.used() <= limits.max_connections);
    slots.release();
    Ok(())
}

/// Three requests for one slot: each gets it, one after another.
#[must_use]
pub fn every_request_gets_the_slot() -> usize {
    explore(|| {
        let slots = Arc::new(ConnectionSlots::default());
        let threads = [(), ()].map(|()| {
            let slots = Arc::clone(&slots);
            thread::spawn(move || assert_eq!(use_slot(&slots, LIMITS, NO_LIMIT), Ok(())))
        });
        assert_eq!(use_slot(&slots, LIMITS, NO_LIMIT), Ok(()));
        for thread in threads {
            thread.join().expect("it has not panicked");
        }
        assert_eq!((slots.used(), slots.pending()), (0, 0));
    })
}

/// A request that gives up while the slot becomes free leaves it to the one that waits behind it.
#[must_use]
pub fn a_request_that_gives_up_leaves_the_slot_to_the_next() -> usize {
    explore(|| {
        let slots = Arc::new(ConnectionSlots::default());
        assert!(slots.try_acquire(LIMITS));
        let impatient = {
            let slots = Arc::clone(&slots);
            thread::spawn(move || {
                let _ = use_slot(&slots, LIMITS, Duration::ZERO);
            })
        };
        let patient = {
            let slots = Arc::clone(&slots);
            thread::spawn(move || assert_eq!(use_slot(&slots, LIMITS, NO_LIMIT), Ok(())))
        };
        slots.release();
        for thread in [impatient, patient] {
            thread.join().expect("it has not panicked");
        }
        assert_eq!((slots.used(), slots.pending()), (0, 0));
    })
}

/// A request of a configuration with a higher limit lets the one pass that waits for a slot that is never given back.
#[must_use]
pub fn a_raised_limit_reaches_the_request_that_waits() -> usize {
    explore(|| {
        let slots = Arc::new(ConnectionSlots::default());
        assert!(slots.try_acquire(LIMITS));
        assert!(!slots.try_acquire(LIMITS));
        let waiting = {
            let slots = Arc::clone(&slots);
            thread::spawn(move || assert_eq!(block_on(slots.acquire(LIMITS, NO_LIMIT)), Ok(())))
        };
        let raised = EndpointLimits {
            max_connections: 4,
            ..LIMITS
        };
        // The first one may come before the other one waits.
        for _ in 0..2 {
            if !slots.try_acquire(raised) {
                assert_eq!(block_on(slots.acquire(raised, NO_LIMIT)), Ok(()));
            }
        }
        waiting.join().expect("it has not panicked");
        assert_eq!((slots.used(), slots.pending()), (4, 0));
    })
}

/// One of two threads logs an event.
#[must_use]
pub fn one_of_two_simultaneous_events_is_logged() -> usize {
    explore(|| {
        let interval = Arc::new(EventInterval::default());
        let now = Instant(SECOND_NS);
        let other = {
            let interval = Arc::clone(&interval);
            thread::spawn(move || interval.begin(now))
        };
        let is_logged = interval.begin(now);
        assert_ne!(is_logged, other.join().expect("it has not panicked"));
    })
}

/// A budget with tokens for one retry permits one of two simultaneous ones.
#[must_use]
pub fn the_last_tokens_of_a_budget_are_for_one_retry() -> usize {
    explore(|| {
        let budget = Arc::new(RetryBudget::default());
        while budget.try_withdraw() {}
        for _ in 0..5 {
            budget.deposit();
        }
        let other = {
            let budget = Arc::clone(&budget);
            thread::spawn(move || budget.try_withdraw())
        };
        let is_first = budget.try_withdraw();
        assert_ne!(is_first, other.join().expect("it has not panicked"));
    })
}

/// A failure after a pause is attributed to it, also while the pause is being noticed.
#[must_use]
pub fn a_pause_is_known_to_every_thread_until_it_is_over() -> usize {
    explore(|| {
        let detector = Arc::new(PauseDetector::default());
        let at = |seconds: u64| Instant(seconds * SECOND_NS);
        detector.tick(at(1));
        let ticking = {
            let detector = Arc::clone(&detector);
            thread::spawn(move || detector.tick(at(61)))
        };
        assert!(detector.was_paused(at(61)));
        ticking.join().expect("it has not panicked");
        assert!(detector.was_paused(at(61)));
    })
}
