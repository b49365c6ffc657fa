//! Each algorithm against a simple model of it, and the quota as a whole.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::HeaderMap;
use proptest::prelude::*;

use super::*;
use crate::features::rate_limit::algorithm::COUNTERS_PER_STATE;

const SECOND_NS: u64 = 1_000_000_000;

type Take = fn(&mut QuotaState, QuotaPolicy, Instant) -> AlgorithmDecision;

/// Returns those of the instants `requests` at which a request passes.
fn passed(take: Take, policy: QuotaPolicy, requests: &[u64]) -> Vec<u64> {
    let mut state = QuotaState::default();
    let passes = |at: &&u64| {
        let before = state;
        match take(&mut state, policy, Instant(**at)) {
            AlgorithmDecision::Passed { .. } => true,
            AlgorithmDecision::Rejected { .. } => {
                // A window may have been opened, but no quota is used.
                assert!(state.counters.iter().sum::<u32>() <= before.counters.iter().sum());
                false
            }
        }
    };
    requests.iter().filter(passes).copied().collect()
}

/// Returns the largest number of requests in any span of `span` nanoseconds.
fn max_in_any_span(passed: &[u64], span: u64) -> usize {
    (0..passed.len())
        .map(|first| {
            let end = passed[first] + span;
            passed[first..].iter().take_while(|at| **at < end).count()
        })
        .max()
        .unwrap_or(0)
}

prop_compose! {
    /// Instants of requests in ascending order, both dense and far apart, over some minutes.
    fn requests()(gaps in proptest::collection::vec(prop_oneof![
        0..SECOND_NS / 100, 0..SECOND_NS, 0..20 * SECOND_NS
    ], 1..200)) -> Vec<u64> {
        gaps.iter().scan(SECOND_NS, |at, gap| { *at += gap; Some(*at) }).collect()
    }
}

prop_compose! {
    fn policies()(
        quota in 1..20u32, window_ns in 1..30 * SECOND_NS, bucket_size in 1..20u32
    ) -> QuotaPolicy {
        QuotaPolicy { quota, window_ns, bucket_size }
    }
}

proptest! {
    #[test]
    fn a_fixed_window_equals_its_model(requests in requests(), policy in policies()) {
        let (mut end, mut count) = (0, 0);
        let model: Vec<u64> = requests.iter().copied().filter(|at| {
            if *at >= end { (end, count) = (at + policy.window_ns, 0); }
            count += 1;
            count <= policy.quota
        }).collect();
        prop_assert_eq!(passed(fixed_window::take, policy, &requests), model);
    }

    #[test]
    fn a_sliding_window_never_exceeds_the_quota_in_any_span(
        requests in requests(), policy in policies()
    ) {
        let passed = passed(sliding_window::take, policy, &requests);
        prop_assert!(max_in_any_span(&passed, policy.window_ns) <= policy.quota as usize);
    }

    #[test]
    fn a_sliding_window_rejects_a_request_at_most_a_slot_too_long(
        requests in requests(), policy in policies()
    ) {
        let slot = policy.window_ns.div_ceil(COUNTERS_PER_STATE as u64 - 1);
        let passed = passed(sliding_window::take, policy, &requests);
        for at in requests.iter().filter(|at| !passed.contains(at)) {
            let earliest = at.saturating_sub(policy.window_ns + slot);
            let recent = passed.iter().filter(|one| (earliest..=*at).contains(*one)).count();
            prop_assert!(recent >= policy.quota as usize);
        }
    }

    #[test]
    fn a_token_bucket_equals_its_model(requests in requests(), policy in policies()) {
        // The unit of `tokens` is the refill of a nanosecond, so that all values are integers.
        let interval = u128::from(policy.emission_interval_ns());
        let full = u128::from(policy.drain_time_ns());
        let (mut tokens, mut last) = (full, 0);
        let model: Vec<u64> = requests.iter().copied().filter(|at| {
            tokens = full.min(tokens + u128::from(at - last));
            last = *at;
            let passes = tokens >= interval;
            if passes { tokens -= interval; }
            passes
        }).collect();
        prop_assert_eq!(passed(token_bucket::take, policy, &requests), model);
    }

    #[test]
    fn a_leaky_bucket_releases_requests_at_a_constant_rate(
        requests in requests(), policy in policies()
    ) {
        let interval = policy.emission_interval_ns();
        let mut state = QuotaState::default();
        let mut released: Vec<u64> = Vec::new();
        for at in requests {
            let queued = released.iter().filter(|out| **out + interval > at).count();
            match leaky_bucket::take(&mut state, policy, Instant(at)) {
                AlgorithmDecision::Passed { delay, .. } => {
                    released.push(at + nanoseconds(delay));
                    prop_assert!(queued <= policy.bucket_size as usize);
                }
                AlgorithmDecision::Rejected { .. } => {
                    prop_assert!(queued >= policy.bucket_size as usize);
                }
            }
        }
        for pair in released.windows(2) {
            prop_assert!(pair[1] - pair[0] >= interval);
        }
    }

    #[test]
    fn a_request_passes_after_the_retry_after_of_a_rejection(
        requests in requests(), policy in policies()
    ) {
        for take in [fixed_window::take, sliding_window::take, token_bucket::take, leaky_bucket::take] {
            let mut state = QuotaState::default();
            for at in &requests {
                let decision = take(&mut state, policy, Instant(*at));
                if let AlgorithmDecision::Rejected { retry_after } = decision {
                    let later = Instant(at + nanoseconds(retry_after));
                    let mut copy = state;
                    let decision = take(&mut copy, policy, later);
                    let passes = matches!(decision, AlgorithmDecision::Passed { .. });
                    prop_assert!(passes);
                }
            }
        }
    }
}

fn rule(quota: u32, seconds: u64) -> RateLimitSettings {
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
fn exactly_the_quota_of_concurrent_requests_passes() {
    let store = Arc::new(QuotaStore::new());
    let quota = Arc::new(Quota::new("/a", &rule(100, 60), &store));
    let passed = Arc::new(AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..125 {
                    let decision = quota.take(
                        &store,
                        client(1),
                        "/a",
                        &HeaderMap::new(),
                        Instant(SECOND_NS),
                    );
                    if matches!(decision, QuotaDecision::Passed(_)) {
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
            let decision = quota.take(
                &store,
                client(number),
                "/a",
                &HeaderMap::new(),
                Instant(SECOND_NS),
            );
            if matches!(decision, QuotaDecision::Passed(_)) {
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
fn a_full_store_makes_quotas_stricter_and_never_laxer() {
    let store = QuotaStore::new();
    let quota = Quota::new("/a", &rule(2, 60), &store);
    for number in 0..1_000_000 {
        for _ in 0..2 {
            quota.take(
                &store,
                client(number),
                "/a",
                &HeaderMap::new(),
                Instant(SECOND_NS),
            );
        }
        let third = quota.take(
            &store,
            client(number),
            "/a",
            &HeaderMap::new(),
            Instant(SECOND_NS),
        );
        assert!(matches!(third, QuotaDecision::Rejected(..)), "{number}");
    }
}

#[test]
fn an_unchanged_rule_keeps_its_counters() {
    let store = QuotaStore::new();
    let take = |rule: &RateLimitSettings| {
        Quota::new("/a", rule, &store).take(
            &store,
            client(1),
            "/a",
            &HeaderMap::new(),
            Instant(SECOND_NS),
        )
    };
    assert!(matches!(take(&rule(1, 60)), QuotaDecision::Passed(_)));
    assert!(matches!(take(&rule(1, 60)), QuotaDecision::Rejected(..)));
    assert!(matches!(take(&rule(1, 61)), QuotaDecision::Passed(_)));
}

#[test]
fn the_headers_follow_the_ratelimit_headers_draft() {
    let store = QuotaStore::new();
    let quota = Quota::new("/a", &rule(100, 60), &store);
    assert_eq!(quota.policy_header(), "\"default\";q=100;w=60");
    let decision = quota.take(
        &store,
        client(1),
        "/a",
        &HeaderMap::new(),
        Instant(SECOND_NS),
    );
    let QuotaDecision::Passed(status) = decision else {
        panic!("{decision:?}");
    };
    assert_eq!(status.header_value(), "\"default\";r=99;t=60");
}
