//! Leaving a failing replica alone: after so many failures in a row of one path, requests under
//! that path do not go there until `recovery_timeout` is over and one probe has gone well.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use prometheus::IntGauge;

use crate::config::CircuitBreaker;
use crate::metrics::Metrics;
use crate::moment::{Moment, nanoseconds};

/// What a breaker says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permission {
    Go,
    /// Open for so long yet.
    Wait(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Failures in a row.
    Closed(u32),
    /// Until then nothing goes through.
    Open(Moment),
    /// One probe is under way since then.
    HalfOpen(Moment),
}

impl State {
    /// Whether a request that entered then tells anything new: where it is not closed, the probe alone
    /// does, and not what comes of requests from before it opened.
    fn is_told_by(self, entered: Moment) -> bool {
        match self {
            Self::Closed(_) => true,
            Self::Open(_) => false,
            Self::HalfOpen(since) => since == entered,
        }
    }
}

/// The breaker of one path and one replica.
#[derive(Debug)]
pub(crate) struct Breaker {
    settings: CircuitBreaker,
    state: Mutex<State>,
    gauge: IntGauge,
}

impl Breaker {
    fn new(settings: CircuitBreaker, gauge: IntGauge) -> Self {
        gauge.set(0);
        Self {
            settings,
            state: Mutex::new(State::Closed(0)),
            gauge,
        }
    }

    /// Whether a request could go through, without taking the probe's place.
    pub(crate) fn peek(&self, now: Moment) -> Permission {
        match *self.state.lock() {
            State::Closed(_) => Permission::Go,
            State::Open(until) if until <= now => Permission::Go,
            State::Open(until) => Permission::Wait(until.since(now)),
            State::HalfOpen(since) => self.probe_of(since, now),
        }
    }

    /// Asks to let a request through. An open breaker whose time is over lets one, the probe.
    fn enter(&self, now: Moment) -> Permission {
        let mut state = self.state.lock();
        let permission = match *state {
            State::Closed(_) => return Permission::Go,
            State::Open(until) if until <= now => Permission::Go,
            State::Open(until) => Permission::Wait(until.since(now)),
            State::HalfOpen(since) => self.probe_of(since, now),
        };
        if permission == Permission::Go {
            *state = State::HalfOpen(now);
            self.gauge.set(1);
        }
        permission
    }

    /// A probe that was never heard of again is replaced after another `recovery_timeout`.
    fn probe_of(&self, since: Moment, now: Moment) -> Permission {
        let left = self
            .settings
            .recovery_timeout
            .saturating_sub(now.since(since));
        if left.is_zero() {
            Permission::Go
        } else {
            Permission::Wait(left)
        }
    }

    /// A request that entered then went well.
    fn succeeded(&self, entered: Moment) {
        let mut state = self.state.lock();
        if *state == State::Closed(0) || !state.is_told_by(entered) {
            return;
        }
        *state = State::Closed(0);
        self.gauge.set(0);
    }

    fn failed(&self, entered: Moment, now: Moment) {
        let mut state = self.state.lock();
        if !state.is_told_by(entered) {
            return;
        }
        let failures = match *state {
            State::Closed(failures) => failures.saturating_add(1),
            State::Open(_) | State::HalfOpen(_) => self.settings.failure_threshold.get(),
        };
        if failures < self.settings.failure_threshold.get() {
            *state = State::Closed(failures);
            return;
        }
        let recovery = nanoseconds(self.settings.recovery_timeout);
        *state = State::Open(Moment(now.0.saturating_add(recovery)));
        self.gauge.set(2);
    }

    /// A request that entered then will never tell: if it was the probe, the next one is.
    fn abandoned(&self, entered: Moment) {
        let mut state = self.state.lock();
        if *state == State::HalfOpen(entered) {
            *state = State::Open(entered);
            self.gauge.set(2);
        }
    }

    /// For a person who looks.
    pub(crate) fn state(&self) -> &'static str {
        match *self.state.lock() {
            State::Closed(_) => "closed",
            State::Open(_) => "open",
            State::HalfOpen(_) => "half-open",
        }
    }
}

/// A request that a breaker has let through, until its replica has answered or failed.
#[derive(Debug)]
pub(crate) struct Pass {
    /// Until it was told.
    breaker: Option<Arc<Breaker>>,
    entered: Moment,
}

impl Pass {
    pub(crate) fn succeeded(mut self) {
        if let Some(breaker) = self.breaker.take() {
            breaker.succeeded(self.entered);
        }
    }

    pub(crate) fn failed(mut self, now: Moment) {
        if let Some(breaker) = self.breaker.take() {
            breaker.failed(self.entered, now);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(breaker) = &self.breaker {
            breaker.abandoned(self.entered);
        }
    }
}

/// The breakers of one path, one for each replica that it was used with.
#[derive(Debug)]
pub(crate) struct Breakers {
    pattern: String,
    settings: CircuitBreaker,
    metrics: Arc<Metrics>,
    /// A handful: to go through them is quicker than to hash.
    each: RwLock<Vec<(SocketAddr, Arc<Breaker>)>>,
}

impl Breakers {
    pub(crate) fn new(pattern: &str, settings: CircuitBreaker, metrics: &Arc<Metrics>) -> Self {
        Self {
            pattern: pattern.to_owned(),
            settings,
            metrics: Arc::clone(metrics),
            each: RwLock::default(),
        }
    }

    /// Whether these follow such settings.
    pub(crate) fn are_by(&self, settings: CircuitBreaker) -> bool {
        self.settings == settings
    }

    /// Asks to let a request through to a replica.
    ///
    /// # Errors
    /// When it may not go there, for how long.
    pub(crate) fn enter(&self, replica: SocketAddr, now: Moment) -> Result<Pass, Duration> {
        let breaker = self.of(replica);
        match breaker.enter(now) {
            Permission::Go => Ok(Pass {
                breaker: Some(breaker),
                entered: now,
            }),
            Permission::Wait(left) => Err(left),
        }
    }

    fn of(&self, replica: SocketAddr) -> Arc<Breaker> {
        if let Some(breaker) = find(&self.each.read(), replica) {
            return Arc::clone(breaker);
        }
        let mut each = self.each.write();
        // Another request may have been quicker.
        if let Some(breaker) = find(&each, replica) {
            return Arc::clone(breaker);
        }
        let gauge = self.metrics.breaker(&self.pattern, &replica.to_string());
        let breaker = Arc::new(Breaker::new(self.settings, gauge));
        each.push((replica, Arc::clone(&breaker)));
        breaker
    }

    /// [`Breaker::peek`] of a replica's breaker: one that was never used is closed.
    pub(crate) fn peek(&self, replica: SocketAddr, now: Moment) -> Permission {
        find(&self.each.read(), replica).map_or(Permission::Go, |breaker| breaker.peek(now))
    }

    /// Forgets replicas that are gone.
    pub(crate) fn keep(&self, stays: impl Fn(SocketAddr) -> bool) {
        self.each.write().retain(|(replica, _)| {
            let stay = stays(*replica);
            if !stay {
                self.metrics
                    .forget_breaker(&self.pattern, &replica.to_string());
            }
            stay
        });
    }

    /// Every replica's state, for a person who looks.
    pub(crate) fn states(&self) -> Vec<(SocketAddr, &'static str)> {
        let each = self.each.read();
        each.iter()
            .map(|(replica, breaker)| (*replica, breaker.state()))
            .collect()
    }
}

fn find(each: &[(SocketAddr, Arc<Breaker>)], replica: SocketAddr) -> Option<&Arc<Breaker>> {
    each.iter()
        .find(|(address, _)| *address == replica)
        .map(|(_, breaker)| breaker)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn breaker() -> Breaker {
        let settings = CircuitBreaker {
            failure_threshold: NonZeroU32::new(3).unwrap(),
            recovery_timeout: Duration::from_secs(30),
        };
        Breaker::new(settings, IntGauge::new("state", "state").unwrap())
    }

    fn at(seconds: u64) -> Moment {
        Moment(seconds * SECOND)
    }

    /// Since the first second.
    fn opened() -> Breaker {
        let breaker = breaker();
        for _ in 0..3 {
            breaker.failed(at(1), at(1));
        }
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_one_good_probe_closes_it() {
        let breaker = breaker();
        for _ in 0..2 {
            breaker.failed(at(1), at(1));
        }
        breaker.succeeded(at(1));
        for _ in 0..3 {
            assert_eq!(breaker.enter(at(2)), Permission::Go);
            breaker.failed(at(2), at(2));
        }
        assert_eq!(
            breaker.enter(at(12)),
            Permission::Wait(Duration::from_secs(20))
        );
        assert_eq!(breaker.peek(at(32)), Permission::Go);
        assert_eq!(breaker.enter(at(32)), Permission::Go);
        assert!(
            matches!(breaker.enter(at(33)), Permission::Wait(_)),
            "one probe"
        );
        breaker.failed(at(32), at(33));
        assert!(matches!(breaker.enter(at(34)), Permission::Wait(_)));
        assert_eq!(breaker.enter(at(63)), Permission::Go);
        breaker.succeeded(at(63));
        assert_eq!(breaker.enter(at(63)), Permission::Go);
        assert_eq!(breaker.enter(at(63)), Permission::Go);
    }

    #[test]
    fn a_probe_that_never_tells_makes_room_for_the_next() {
        let breaker = opened();
        assert_eq!(breaker.enter(at(31)), Permission::Go);
        breaker.abandoned(at(0));
        assert!(matches!(breaker.enter(at(32)), Permission::Wait(_)));
        breaker.abandoned(at(31));
        assert_eq!(breaker.enter(at(32)), Permission::Go);
        assert!(matches!(breaker.enter(at(32)), Permission::Wait(_)));
    }

    #[test]
    fn what_comes_late_decides_nothing() {
        let breaker = opened();
        breaker.succeeded(at(0));
        assert!(matches!(breaker.enter(at(2)), Permission::Wait(_)));
        assert_eq!(breaker.enter(at(31)), Permission::Go);
        breaker.succeeded(at(0));
        breaker.failed(at(0), at(32));
        assert_eq!(breaker.state(), "half-open");
        breaker.succeeded(at(31));
        assert_eq!(breaker.state(), "closed");
    }
}
