//! Each algorithm against a plain model of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::HeaderMap;
use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn allowance(quota: u32, duration: u64, bucket: u32) -> Allowance {
    Allowance {
        quota,
        duration,
        bucket,
    }
}

type Take = fn(&mut State, Allowance, Moment) -> Outcome;

/// The moments at which requests passed, of those that were made.
fn passed(take: Take, allowance: Allowance, requests: &[u64]) -> Vec<u64> {
    let mut state = State::default();
    let passes = |at: &&u64| {
        let before = state;
        match take(&mut state, allowance, Moment(**at)) {
            Outcome::Passed { .. } => true,
            Outcome::Refused { .. } => {
                // A window may have been opened, but nothing is used up.
                assert!(state.counts.iter().sum::<u32>() <= before.counts.iter().sum());
                false
            }
        }
    };
    requests.iter().filter(passes).copied().collect()
}

fn most_in_a_span(passed: &[u64], span: u64) -> usize {
    (0..passed.len())
        .map(|first| {
            let end = passed[first] + span;
            passed[first..].iter().take_while(|at| **at < end).count()
        })
        .max()
        .unwrap_or(0)
}

prop_compose! {
    /// Requests at growing moments, dense and far apart, up to some minutes.
    fn requests()(gaps in proptest::collection::vec(prop_oneof![
        0..SECOND / 100, 0..SECOND, 0..20 * SECOND
    ], 1..200)) -> Vec<u64> {
        gaps.iter().scan(SECOND, |at, gap| { *at += gap; Some(*at) }).collect()
    }
}

prop_compose! {
    fn allowances()(quota in 1..20u32, duration in 1..30 * SECOND, bucket in 1..20u32) -> Allowance {
        allowance(quota, duration, bucket)
    }
}

proptest! {
    #[test]
    fn a_fixed_window_is_the_plain_one(requests in requests(), allowance in allowances()) {
        let (mut end, mut count) = (0, 0);
        let model: Vec<u64> = requests.iter().copied().filter(|at| {
            if *at >= end { (end, count) = (at + allowance.duration, 0); }
            count += 1;
            count <= allowance.quota
        }).collect();
        prop_assert_eq!(passed(fixed_window::take, allowance, &requests), model);
    }

    #[test]
    fn a_sliding_window_never_lets_more_through_in_any_span(
        requests in requests(), allowance in allowances()
    ) {
        let passed = passed(sliding_window::take, allowance, &requests);
        prop_assert!(most_in_a_span(&passed, allowance.duration) <= allowance.quota as usize);
    }

    #[test]
    fn a_sliding_window_refuses_only_who_is_within_a_slot_of_the_quota(
        requests in requests(), allowance in allowances()
    ) {
        let slot = allowance.duration.div_ceil(COUNTS as u64 - 1);
        let passed = passed(sliding_window::take, allowance, &requests);
        for at in requests.iter().filter(|at| !passed.contains(at)) {
            let earliest = at.saturating_sub(allowance.duration + slot);
            let recent = passed.iter().filter(|one| (earliest..=*at).contains(*one)).count();
            prop_assert!(recent >= allowance.quota as usize);
        }
    }

    #[test]
    fn a_token_bucket_is_the_plain_one(requests in requests(), allowance in allowances()) {
        // Tokens in units so small that the refill of a nanosecond is a whole number of them.
        let (interval, full) = (u128::from(allowance.interval()), u128::from(allowance.depth()));
        let (mut tokens, mut last) = (full, 0);
        let model: Vec<u64> = requests.iter().copied().filter(|at| {
            tokens = full.min(tokens + u128::from(at - last));
            last = *at;
            let passes = tokens >= interval;
            if passes { tokens -= interval; }
            passes
        }).collect();
        prop_assert_eq!(passed(token_bucket::take, allowance, &requests), model);
    }

    #[test]
    fn a_leaky_bucket_lets_requests_out_evenly(requests in requests(), allowance in allowances()) {
        let mut state = State::default();
        let mut released: Vec<u64> = Vec::new();
        for at in requests {
            let waiting = released.iter().filter(|out| **out + allowance.interval() > at).count();
            match leaky_bucket::take(&mut state, allowance, Moment(at)) {
                Outcome::Passed { delay, .. } => {
                    released.push(at + nanoseconds(delay));
                    prop_assert!(waiting <= allowance.bucket as usize);
                }
                Outcome::Refused { .. } => prop_assert!(waiting >= allowance.bucket as usize),
            }
        }
        for pair in released.windows(2) {
            prop_assert!(pair[1] - pair[0] >= allowance.interval());
        }
    }

    #[test]
    fn a_refusal_tells_when_the_next_request_passes(
        requests in requests(), allowance in allowances()
    ) {
        for take in [fixed_window::take, sliding_window::take, token_bucket::take, leaky_bucket::take] {
            let mut state = State::default();
            for at in &requests {
                if let Outcome::Refused { retry_after } = take(&mut state, allowance, Moment(*at)) {
                    let then = Moment(at + nanoseconds(retry_after));
                    let mut copy = state;
                    let passes = matches!(take(&mut copy, allowance, then), Outcome::Passed { .. });
                    prop_assert!(passes);
                }
            }
        }
    }
}

fn rule(quota: u32, seconds: u64) -> RateLimit {
    let yaml = format!(
        "premier: {{paths: [{{pattern: /a, features: {{rate_limit: {{quota: {quota}, duration: {seconds}}}}}}}]}}"
    );
    let environment = crate::config::Environment::for_tests();
    let config = crate::config::Config::parse("gateway.yml".as_ref(), &yaml, &environment).unwrap();
    config.paths[0].features.rate_limit.clone().unwrap()
}

fn client(number: u32) -> ClientKey {
    ClientKey::from(std::net::IpAddr::from(number.to_be_bytes()))
}

#[test]
fn of_many_requests_at_once_the_quota_passes_exactly() {
    let store = Arc::new(QuotaStore::new());
    let quota = Arc::new(Quota::new("/a", &rule(100, 60), &store));
    let passed = Arc::new(AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..125 {
                    let verdict =
                        quota.take(&store, client(1), "/a", &HeaderMap::new(), Moment(SECOND));
                    if matches!(verdict, Verdict::Passed(_)) {
                        passed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(passed.load(Ordering::Relaxed), 100);
}

#[test]
fn a_hundred_thousand_clients_are_counted_exactly() {
    let store = QuotaStore::new();
    let quota = Quota::new("/a", &rule(2, 60), &store);
    let mut passed = HashMap::new();
    for _ in 0..3 {
        for number in 0..100_000 {
            let verdict = quota.take(
                &store,
                client(number),
                "/a",
                &HeaderMap::new(),
                Moment(SECOND),
            );
            if matches!(verdict, Verdict::Passed(_)) {
                *passed.entry(number).or_insert(0) += 1;
            }
        }
    }
    assert_eq!(
        passed.values().filter(|count| **count == 2).count(),
        100_000
    );
}

#[test]
fn a_full_table_gets_stricter_and_never_laxer() {
    let store = QuotaStore::new();
    let quota = Quota::new("/a", &rule(2, 60), &store);
    for number in 0..1_000_000 {
        for _ in 0..2 {
            quota.take(
                &store,
                client(number),
                "/a",
                &HeaderMap::new(),
                Moment(SECOND),
            );
        }
        let third = quota.take(
            &store,
            client(number),
            "/a",
            &HeaderMap::new(),
            Moment(SECOND),
        );
        assert!(matches!(third, Verdict::Refused(..)), "{number}");
    }
}

#[test]
fn a_rule_that_stays_the_same_keeps_its_counts() {
    let store = QuotaStore::new();
    let take = |rule: &RateLimit| {
        Quota::new("/a", rule, &store).take(
            &store,
            client(1),
            "/a",
            &HeaderMap::new(),
            Moment(SECOND),
        )
    };
    assert!(matches!(take(&rule(1, 60)), Verdict::Passed(_)));
    assert!(matches!(take(&rule(1, 60)), Verdict::Refused(..)));
    assert!(matches!(take(&rule(1, 61)), Verdict::Passed(_)));
}

#[test]
fn the_headers_are_those_of_the_draft() {
    let store = QuotaStore::new();
    let quota = Quota::new("/a", &rule(100, 60), &store);
    assert_eq!(quota.policy(), "\"default\";q=100;w=60");
    let verdict = quota.take(&store, client(1), "/a", &HeaderMap::new(), Moment(SECOND));
    let Verdict::Passed(standing) = verdict else {
        panic!("{verdict:?}");
    };
    assert_eq!(standing.header(), "\"default\";r=99;t=60");
}
