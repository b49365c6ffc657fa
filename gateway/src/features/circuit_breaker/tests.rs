//! Circuit breakers against a model that knows each request by its number.

use std::num::NonZeroU32;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);
const SECOND_NS: u64 = 1_000_000_000;

/// Step of a run. A number selects one of the requests under way.
#[derive(Debug, Clone, Copy)]
enum Step {
    Advance(Duration),
    Acquire,
    BeginResponse(usize),
    Succeed(usize),
    Fail(usize),
    /// The request ends without an outcome.
    Leave(usize),
    /// A health check finds the endpoint healthy again.
    ProbeNow,
}

fn step() -> impl Strategy<Value = Step> {
    let seconds = prop_oneof![Just(0), Just(1), Just(15), Just(29), Just(30), Just(31)];
    prop_oneof![
        3 => seconds.prop_map(|seconds| Step::Advance(Duration::from_secs(seconds))),
        6 => Just(Step::Acquire),
        2 => (0..8_usize).prop_map(Step::BeginResponse),
        2 => (0..8_usize).prop_map(Step::Succeed),
        4 => (0..8_usize).prop_map(Step::Fail),
        2 => (0..8_usize).prop_map(Step::Leave),
        1 => Just(Step::ProbeNow),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Model {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen { probe: usize, since: Instant },
}

impl Model {
    fn name(self) -> &'static str {
        match self {
            Self::Closed { .. } => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen { .. } => "half-open",
        }
    }

    /// Returns the time until a request is admitted.
    fn wait(self, now: Instant) -> Duration {
        match self {
            Self::Closed { .. } => Duration::ZERO,
            Self::Open { until } => until.since(now),
            Self::HalfOpen { since, .. } => since.saturating_add(RECOVERY_TIMEOUT).since(now),
        }
    }

    fn is_probe(self, request: usize) -> bool {
        matches!(self, Self::HalfOpen { probe, .. } if probe == request)
    }

    fn admit(&mut self, request: usize, now: Instant) {
        if !matches!(self, Self::Closed { .. }) {
            *self = Self::HalfOpen {
                probe: request,
                since: now,
            };
        }
    }

    fn fail(&mut self, request: usize, threshold: u32, now: Instant) {
        let open = Self::Open {
            until: now.saturating_add(RECOVERY_TIMEOUT),
        };
        match self {
            Self::Closed { failures } if *failures + 1 < threshold => *failures += 1,
            Self::Closed { .. } => *self = open,
            Self::HalfOpen { probe, .. } if *probe == request => *self = open,
            Self::HalfOpen { .. } | Self::Open { .. } => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_breaker_is_as_its_model_whatever_the_outcomes_of_its_requests(
        threshold in 1..4_u32,
        steps in vec(step(), 0..80),
    ) {
        let settings = CircuitBreakerSettings {
            failure_threshold: NonZeroU32::new(threshold).unwrap(),
            recovery_timeout: RECOVERY_TIMEOUT,
        };
        let breakers =
            CircuitBreakers::new("/*", "default", settings, &Arc::new(Metrics::new("test")));
        let endpoint = SocketAddr::from(([192, 0, 2, 1], 80));
        let mut model = Model::Closed { failures: 0 };
        let (mut now, mut count) = (Instant(SECOND_NS), 0);
        let mut under_way: Vec<(usize, Permit)> = Vec::new();
        // The breaker is created by the first request.
        for step in [Step::Acquire].into_iter().chain(steps) {
            let number = match step {
                Step::Succeed(number) | Step::Fail(number) | Step::Leave(number) | Step::BeginResponse(number) => number,
                Step::Advance(_) | Step::Acquire | Step::ProbeNow => 0,
            };
            let selected = number.checked_rem(under_way.len());
            match step {
                Step::Advance(duration) => now = now.saturating_add(duration),
                Step::Acquire => {
                    let wait = model.wait(now);
                    let expected = if wait.is_zero() {
                        Permission::Granted
                    } else {
                        Permission::Denied { retry_after: wait }
                    };
                    prop_assert_eq!(breakers.permission(endpoint, now), expected);
                    match breakers.acquire(endpoint, now) {
                        Ok(permit) => {
                            prop_assert!(wait.is_zero());
                            model.admit(count, now);
                            under_way.push((count, permit));
                            count += 1;
                        }
                        Err(retry_after) => prop_assert_eq!(retry_after, wait),
                    }
                }
                Step::ProbeNow => {
                    breakers.probe_now(endpoint, now);
                    if let Model::Open { until } = &mut model {
                        *until = now.min(*until);
                    }
                }
                Step::BeginResponse(_) => {
                    let Some(selected) = selected else { continue };
                    let (request, permit) = &under_way[selected];
                    permit.record_response_begin();
                    if model.is_probe(*request) {
                        model = Model::Closed { failures: threshold - 1 };
                    }
                }
                Step::Succeed(_) | Step::Fail(_) | Step::Leave(_) => {
                    let Some(selected) = selected else { continue };
                    let (request, permit) = under_way.swap_remove(selected);
                    match step {
                        Step::Succeed(_) => {
                            permit.record_success();
                            if model.is_probe(request) || matches!(model, Model::Closed { .. }) {
                                model = Model::Closed { failures: 0 };
                            }
                        }
                        Step::Fail(_) => {
                            permit.record_failure(now);
                            model.fail(request, threshold, now);
                        }
                        _ => {
                            drop(permit);
                            if let Model::HalfOpen { since, .. } = model
                                && model.is_probe(request)
                            {
                                model = Model::Open { until: since };
                            }
                        }
                    }
                }
            }
            prop_assert_eq!(breakers.states()[0].1, model.name(), "after {:?}", step);
        }
    }
}
