//! Quotas against lists of the times at which requests passed.

use std::num::NonZeroU32;
use std::time::Duration;

use gateway::fuzz::{Decision, QuotaAlgorithm, QuotaUnderTest};

use crate::input::Choices;

const CLIENTS: usize = 3;
const MAX_REQUESTS: usize = 200;
/// Slots of a sliding window; quota becomes available at most one of them late. A slot has whole nanoseconds.
const SLOTS: u64 = 11;
/// Time of the first request: the clock starts with the process.
const START_NS: u64 = 1_000_000_000;
const SECOND_NS: u64 = 1_000_000_000;

/// Input: the settings, then client and time of each request.
pub(crate) fn run(input: &[u8]) {
    let mut choices = Choices::new(input);
    let algorithm = choices.one_of(&[
        QuotaAlgorithm::FixedWindow,
        QuotaAlgorithm::SlidingWindow,
        QuotaAlgorithm::TokenBucket,
        QuotaAlgorithm::LeakyBucket,
    ]);
    let settings = Settings {
        algorithm,
        quota: u32::from(choices.byte() % 20) + 1,
        window_ns: choices.one_of(&[
            1,
            999,
            SECOND_NS / 7,
            SECOND_NS,
            10 * SECOND_NS,
            86400 * SECOND_NS,
        ]),
        bucket_size: u32::from(choices.byte() % 20) + 1,
    };
    let quota = QuotaUnderTest::new(
        algorithm,
        NonZeroU32::new(settings.quota).expect("it is positive"),
        Duration::from_nanos(settings.window_ns),
        NonZeroU32::new(settings.bucket_size).expect("it is positive"),
    );
    let mut models = [const { Vec::new() }; CLIENTS];
    let mut now = START_NS;
    for _ in 0..MAX_REQUESTS {
        if choices.is_empty() {
            return;
        }
        let choice = choices.byte();
        let client = choice % u8::try_from(CLIENTS).expect("there are few");
        let unit = [
            1,
            settings.window_ns / 20,
            settings.window_ns / 3,
            settings.window_ns,
        ];
        let step = unit[usize::from(choice >> 6)].saturating_mul(u64::from(choice >> 2 & 15));
        now = now.saturating_add(step);
        let passed = &mut models[usize::from(client)];
        check(settings, passed, now, quota.take(client, now));
    }
}

#[derive(Debug, Clone, Copy)]
struct Settings {
    algorithm: QuotaAlgorithm,
    quota: u32,
    window_ns: u64,
    bucket_size: u32,
}

/// Checks a decision by the requests that passed, each with the time at which it is forwarded, and records it.
fn check(settings: Settings, passed: &mut Vec<(u64, u64)>, now: u64, decision: Decision) {
    let delay = match decision {
        Decision::Passed { delay, .. } => u64::try_from(delay.as_nanos()).expect("it is short"),
        Decision::Rejected {
            retry_after_seconds,
        } => {
            assert!(retry_after_seconds >= 1);
            0
        }
    };
    let is_passed = matches!(decision, Decision::Passed { .. });
    let quota = settings.quota as usize;
    match settings.algorithm {
        QuotaAlgorithm::FixedWindow => {
            let window = current_window(passed, settings.window_ns, now);
            assert_eq!(is_passed, window < quota, "{settings:?}");
            if let Decision::Passed { remaining, .. } = decision {
                assert_eq!(remaining as usize, quota - window - 1);
            }
        }
        QuotaAlgorithm::SlidingWindow => {
            let slot = settings.window_ns.div_ceil(SLOTS);
            let within = |span: u64| {
                let recent = passed.iter().rev().take_while(|(at, _)| now - at < span);
                recent.count()
            };
            if is_passed {
                assert!(within(settings.window_ns) < quota, "{settings:?}");
            } else {
                assert!(within((SLOTS + 1) * slot) >= quota, "{settings:?}");
            }
        }
        QuotaAlgorithm::TokenBucket | QuotaAlgorithm::LeakyBucket => {
            let interval = settings
                .window_ns
                .div_ceil(u64::from(settings.quota))
                .max(1);
            let queue = queue_end(passed, interval, now);
            let room = u128::from(interval) * u128::from(settings.bucket_size);
            let fits = u128::from(queue - now) + u128::from(interval) <= room;
            assert_eq!(is_passed, fits, "{settings:?}");
            let expected_delay = match settings.algorithm {
                QuotaAlgorithm::LeakyBucket if is_passed => queue - now,
                _ => 0,
            };
            assert_eq!(delay, expected_delay);
        }
    }
    if is_passed {
        passed.push((now, now + delay));
    }
}

/// Returns the number of requests that passed in the fixed window of `now`. A window begins with the first request
/// after the one before has ended.
fn current_window(passed: &[(u64, u64)], window_ns: u64, now: u64) -> usize {
    let (mut end, mut count) = (0, 0);
    for at in passed.iter().map(|(at, _)| *at).chain([now]) {
        if at >= end {
            (end, count) = (at + window_ns, 0);
        }
        count += 1;
    }
    count - 1
}

/// Returns when a queue is empty that takes `interval` for each request.
fn queue_end(passed: &[(u64, u64)], interval: u64, now: u64) -> u64 {
    let requests = passed.iter().map(|(at, _)| *at);
    requests
        .fold(0, |end: u64, at| end.max(at) + interval)
        .max(now)
}
