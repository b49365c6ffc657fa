//! State machine of one circuit breaker.

use std::time::Duration;

use parking_lot::Mutex;
use prometheus::IntGauge;

use crate::config::CircuitBreakerSettings;
use crate::runtime::clock::Instant;

// Values of the metric `circuit_breaker_state`.
const GAUGE_CLOSED: i64 = 0;
const GAUGE_HALF_OPEN: i64 = 1;
const GAUGE_OPEN: i64 = 2;

/// Decision of a circuit breaker about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permission {
    Granted,
    Denied {
        /// Time until the next probe.
        retry_after: Duration,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BreakerState {
    Closed {
        consecutive_failures: u32,
    },
    /// No request passes before `until`.
    Open {
        until: Instant,
    },
    /// The probe is in flight.
    HalfOpen {
        probe: ProbeNumber,
        probe_started: Instant,
    },
}

impl BreakerState {
    const INITIAL: Self = Self::Closed {
        consecutive_failures: 0,
    };

    /// Returns true if the outcome of a request counts. In a half-open breaker only the outcome of the probe
    /// does, not those of requests from before the breaker opened.
    fn considers(self, admission: Admission) -> bool {
        match self {
            Self::Closed { .. } => true,
            Self::Open { .. } => false,
            Self::HalfOpen { .. } => self.has_probe(admission),
        }
    }

    /// Returns true if the breaker is half-open and waits for the outcome of this request.
    fn has_probe(self, admission: Admission) -> bool {
        matches!((self, admission), (Self::HalfOpen { probe, .. }, Admission::Probe(number)) if probe == number)
    }
}

/// Number of a probe among those of its circuit breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProbeNumber(u64);

/// Role of an admitted request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// One of the requests that a closed breaker admits.
    Regular,
    /// The request whose outcome decides whether the breaker closes.
    Probe(ProbeNumber),
}

#[derive(Debug)]
struct Tracked {
    state: BreakerState,
    /// Probes so far.
    probes: u64,
}

/// Circuit breaker of one path pattern and one endpoint. With the counters of its `Arc` it has one cache line: there are as
/// many as patterns and endpoints that are in use, and each request needs one.
#[derive(Debug)]
pub(super) struct CircuitBreaker {
    tracked: Mutex<Tracked>,
    transitions: Box<Transitions>,
}

/// Settings of a circuit breaker and the metric of its state, which only a request that fails or probes needs.
#[derive(Debug)]
struct Transitions {
    settings: CircuitBreakerSettings,
    gauge: IntGauge,
}

impl CircuitBreaker {
    pub(super) fn new(settings: CircuitBreakerSettings, gauge: IntGauge) -> Self {
        gauge.set(GAUGE_CLOSED);
        Self {
            tracked: Mutex::new(Tracked {
                state: BreakerState::INITIAL,
                probes: 0,
            }),
            transitions: Box::new(Transitions { settings, gauge }),
        }
    }

    /// Returns the permission that a request would get now, without making it the probe.
    pub(super) fn permission(&self, now: Instant) -> Permission {
        self.permission_in(self.tracked.lock().state, now)
    }

    /// Admits a request. The first request after `recovery_timeout` becomes the probe.
    ///
    /// # Errors
    /// Returns the time until the next probe if the request is not admitted.
    pub(super) fn admit(&self, now: Instant) -> Result<Admission, Duration> {
        let mut tracked = self.tracked.lock();
        if let Permission::Denied { retry_after } = self.permission_in(tracked.state, now) {
            return Err(retry_after);
        }
        if matches!(tracked.state, BreakerState::Closed { .. }) {
            return Ok(Admission::Regular);
        }
        let probe = ProbeNumber(tracked.probes);
        tracked.probes += 1;
        tracked.state = BreakerState::HalfOpen {
            probe,
            probe_started: now,
        };
        self.transitions.gauge.set(GAUGE_HALF_OPEN);
        Ok(Admission::Probe(probe))
    }

    fn permission_in(&self, state: BreakerState, now: Instant) -> Permission {
        let retry_after = match state {
            BreakerState::Closed { .. } => Duration::ZERO,
            BreakerState::Open { until } => until.since(now),
            // A probe without an outcome is replaced after another `recovery_timeout`.
            BreakerState::HalfOpen { probe_started, .. } => self
                .transitions
                .settings
                .recovery_timeout
                .saturating_sub(now.since(probe_started)),
        };
        if retry_after.is_zero() {
            Permission::Granted
        } else {
            Permission::Denied { retry_after }
        }
    }

    /// Records that a request has got the headers of a successful response. That of the probe
    /// closes the breaker, since the response may be a stream that lasts for hours. Until a response is
    /// complete, one failure opens the breaker again.
    pub(super) fn record_probe_response(&self, admission: Admission) {
        let state = &mut self.tracked.lock().state;
        if state.has_probe(admission) {
            *state = BreakerState::Closed {
                consecutive_failures: self.transitions.settings.failure_threshold.get() - 1,
            };
            self.transitions.gauge.set(GAUGE_CLOSED);
        }
    }

    /// Records the success of a request.
    pub(super) fn record_success(&self, admission: Admission) {
        let state = &mut self.tracked.lock().state;
        if *state == BreakerState::INITIAL || !state.considers(admission) {
            return;
        }
        *state = BreakerState::INITIAL;
        self.transitions.gauge.set(GAUGE_CLOSED);
    }

    /// Records the failure of a request.
    pub(super) fn record_failure(&self, admission: Admission, now: Instant) {
        let state = &mut self.tracked.lock().state;
        if !state.considers(admission) {
            return;
        }
        let threshold = self.transitions.settings.failure_threshold.get();
        let failures = match *state {
            BreakerState::Closed {
                consecutive_failures,
            } => consecutive_failures.saturating_add(1),
            BreakerState::Open { .. } | BreakerState::HalfOpen { .. } => threshold,
        };
        if failures < threshold {
            *state = BreakerState::Closed {
                consecutive_failures: failures,
            };
            return;
        }
        *state = BreakerState::Open {
            until: now.saturating_add(self.transitions.settings.recovery_timeout),
        };
        self.transitions.gauge.set(GAUGE_OPEN);
    }

    /// Ends a request without an outcome. If it was the probe, the next request becomes the probe.
    pub(super) fn release_probe(&self, admission: Admission) {
        let state = &mut self.tracked.lock().state;
        if state.has_probe(admission)
            && let BreakerState::HalfOpen { probe_started, .. } = *state
        {
            *state = BreakerState::Open {
                until: probe_started,
            };
            self.transitions.gauge.set(GAUGE_OPEN);
        }
    }

    /// Ends the recovery timeout of an open breaker: the next request becomes the probe.
    pub(super) fn probe_now(&self, now: Instant) {
        let state = &mut self.tracked.lock().state;
        if let BreakerState::Open { until } = *state {
            *state = BreakerState::Open {
                until: until.min(now),
            };
        }
    }

    pub(super) fn state_name(&self) -> &'static str {
        match self.tracked.lock().state {
            BreakerState::Closed { .. } => "closed",
            BreakerState::Open { .. } => "open",
            BreakerState::HalfOpen { .. } => "half-open",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn a_circuit_breaker_has_one_cache_line() {
        let counters_of_arc = 2 * size_of::<usize>();
        assert_eq!(counters_of_arc + size_of::<CircuitBreaker>(), 64);
    }

    fn closed_breaker() -> CircuitBreaker {
        let settings = CircuitBreakerSettings {
            failure_threshold: NonZeroU32::new(3).unwrap(),
            recovery_timeout: Duration::from_secs(30),
        };
        CircuitBreaker::new(settings, IntGauge::new("state", "state").unwrap())
    }

    impl CircuitBreaker {
        fn acquire(&self, now: Instant) -> Permission {
            match self.admit(now) {
                Ok(_) => Permission::Granted,
                Err(retry_after) => Permission::Denied { retry_after },
            }
        }
    }

    fn at(seconds: u64) -> Instant {
        Instant(seconds * SECOND_NS)
    }

    const REGULAR: Admission = Admission::Regular;

    fn probe(number: u64) -> Admission {
        Admission::Probe(ProbeNumber(number))
    }

    /// Returns a breaker that opened at second 1.
    fn open_breaker() -> CircuitBreaker {
        let breaker = closed_breaker();
        for _ in 0..3 {
            breaker.record_failure(REGULAR, at(1));
        }
        breaker
    }

    #[test]
    fn consecutive_failures_open_it_and_a_successful_probe_closes_it() {
        let breaker = closed_breaker();
        for _ in 0..2 {
            breaker.record_failure(REGULAR, at(1));
        }
        breaker.record_success(REGULAR);
        for _ in 0..3 {
            assert_eq!(breaker.acquire(at(2)), Permission::Granted);
            breaker.record_failure(REGULAR, at(2));
        }
        assert_eq!(
            breaker.acquire(at(12)),
            Permission::Denied {
                retry_after: Duration::from_secs(20)
            }
        );
        assert_eq!(breaker.permission(at(32)), Permission::Granted);
        assert_eq!(breaker.acquire(at(32)), Permission::Granted);
        assert!(
            matches!(breaker.acquire(at(33)), Permission::Denied { .. }),
            "one probe"
        );
        breaker.record_failure(probe(0), at(33));
        assert!(matches!(breaker.acquire(at(34)), Permission::Denied { .. }));
        assert_eq!(breaker.acquire(at(63)), Permission::Granted);
        breaker.record_success(probe(1));
        assert_eq!(breaker.acquire(at(63)), Permission::Granted);
        assert_eq!(breaker.acquire(at(63)), Permission::Granted);
    }

    #[test]
    fn a_probe_without_an_outcome_is_followed_by_another() {
        let breaker = open_breaker();
        assert_eq!(breaker.acquire(at(31)), Permission::Granted);
        breaker.release_probe(probe(1));
        assert!(matches!(breaker.acquire(at(32)), Permission::Denied { .. }));
        breaker.release_probe(probe(0));
        assert_eq!(breaker.acquire(at(32)), Permission::Granted);
        assert!(matches!(breaker.acquire(at(32)), Permission::Denied { .. }));
    }

    #[test]
    fn a_probe_whose_response_breaks_off_opens_it_again() {
        let breaker = open_breaker();
        assert_eq!(breaker.admit(at(31)), Ok(probe(0)));
        breaker.record_probe_response(probe(0));
        assert_eq!(breaker.admit(at(31)), Ok(REGULAR));
        breaker.record_failure(REGULAR, at(32));
        assert!(matches!(breaker.acquire(at(33)), Permission::Denied { .. }));

        assert_eq!(breaker.admit(at(62)), Ok(probe(1)));
        breaker.record_probe_response(probe(1));
        breaker.record_success(probe(1));
        breaker.record_failure(probe(1), at(63));
        assert_eq!(breaker.acquire(at(63)), Permission::Granted);
    }

    #[test]
    fn outcomes_of_earlier_requests_do_not_change_an_open_breaker() {
        let breaker = open_breaker();
        breaker.record_success(REGULAR);
        assert!(matches!(breaker.acquire(at(2)), Permission::Denied { .. }));
        assert_eq!(breaker.acquire(at(31)), Permission::Granted);
        breaker.record_success(REGULAR);
        breaker.record_failure(REGULAR, at(32));
        assert_eq!(breaker.state_name(), "half-open");
        breaker.record_success(probe(0));
        assert_eq!(breaker.state_name(), "closed");
    }
}
