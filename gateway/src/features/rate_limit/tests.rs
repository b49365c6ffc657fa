//! Each algorithm against a simple model of it, and the quota as a whole.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::HeaderMap;
use proptest::prelude::*;

use super::*;
use crate::features::rate_limit::algorithm::COUNTERS_PER_STATE;
use crate::runtime::clock::nanoseconds;

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
    let quota = Arc::new(Quota::new("/a", &rule(100, 60)));
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
    let quota = Quota::new("/a", &rule(2, 60));
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
    let quota = Quota::new("/a", &rule(2, 60));
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
        Quota::new("/a", rule).take(
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
    let quota = Quota::new("/a", &rule(100, 60));
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

fn quota(pattern: &str, rule: &str) -> Quota {
    let yaml = format!(
        "premier: {{paths: [{{pattern: '{pattern}', features: {{rate_limit: {{{rule}}}}}}}]}}"
    );
    let environment = crate::config::Environment::for_tests();
    let config = crate::config::Config::parse("gateway.yml".as_ref(), &yaml, &environment).unwrap();
    let rule = config.paths[0].features.rate_limit.as_ref().unwrap();
    Quota::new(pattern, rule)
}

/// Takes from a quota for a path at a second. Returns whether the request passes.
fn passes(quota: &Quota, store: &QuotaStore, number: u32, path: &str, second: u64) -> bool {
    let now = Instant(second * SECOND_NS);
    let decision = quota.take(store, client(number), path, &HeaderMap::new(), now);
    !matches!(decision, QuotaDecision::Rejected(..))
}

const ALGORITHMS: [&str; 4] = [
    "fixed_window",
    "sliding_window",
    "token_bucket",
    "leaky_bucket",
];

#[test]
fn a_client_with_any_number_of_keys_leaves_room_for_others() {
    for algorithm in ["fixed_window", "token_bucket"] {
        for per in ["client, endpoint", "endpoint"] {
            let store = QuotaStore::new();
            let rule = format!("quota: 2, duration: 600, algorithm: {algorithm}, per: [{per}]");
            let quota = quota("/api/*", &rule);
            let mut passed = 0;
            // The first ones are more than the store has slots. Epochs of 2^40 ns, about 1,100 s.
            for (second, count) in [(1000, 300_000), (1300, 5000), (1600, 5000)] {
                for number in 0..count {
                    let path = format!("/api/{second}/{number}");
                    passed += usize::from(passes(&quota, &store, 0, &path, second));
                }
            }
            assert!(passed < 4096, "{algorithm} per {per}: {passed}");
            let inexact = (1..5000)
                .filter(|number| {
                    let path = format!("/api/of/{number}");
                    let pass = || passes(&quota, &store, *number, &path, 1600);
                    [pass(), pass(), pass()] != [true, true, false]
                })
                .count();
            assert_eq!(inexact, 0, "{algorithm} per {per}");
        }
    }
}

#[test]
fn a_client_over_its_key_limit_has_one_quota_for_the_rest() {
    for algorithm in ALGORITHMS {
        let store = QuotaStore::new();
        let rule = format!("quota: 3, duration: 600, algorithm: {algorithm}");
        let quota = quota("/api/*", &rule);
        for number in 0..key_limit::MAX_KEYS_PER_CLIENT {
            let path = format!("/api/{number}");
            assert!(passes(&quota, &store, 1, &path, 1000), "{path}");
        }
        let rest: Vec<_> = (0..5)
            .map(|number| passes(&quota, &store, 1, &format!("/api/new/{number}"), 1000))
            .collect();
        assert_eq!(rest, [true, true, true, false, false], "{algorithm}");
        let known = || passes(&quota, &store, 1, "/api/0", 1000);
        assert_eq!([known(), known(), known()], [true, true, false]);
        assert!(passes(&quota, &store, 2, "/api/new/4", 1000), "{algorithm}");
    }
}

#[test]
fn a_key_that_outlives_an_epoch_is_not_counted_anew() {
    for algorithm in ["sliding_window", "token_bucket"] {
        let store = QuotaStore::new();
        let rule = format!("quota: 3, duration: 600, algorithm: {algorithm}");
        let quota = quota("/api/*", &rule);
        // Epochs of 2^40 ns, about 1,100 s.
        let login = |second| passes(&quota, &store, 1, "/api/login", second);
        assert_eq!([1090; 4].map(login), [true, true, true, false]);
        for number in 0..key_limit::MAX_KEYS_PER_CLIENT {
            passes(&quota, &store, 1, &format!("/api/{number}"), 1101);
        }
        assert!(!login(1101), "{algorithm}");
    }
}

#[test]
fn a_key_that_gets_a_slot_keeps_what_the_sketch_has_counted() {
    for algorithm in ALGORITHMS {
        let store = QuotaStore::new();
        let filler = quota("/filler", "quota: 1, duration: 1");
        for number in 0..1_000_000 {
            passes(&filler, &store, number, "/filler", 1000);
        }
        let rule = format!("quota: 2, duration: 600, algorithm: {algorithm}");
        let quota = quota("/a", &rule);
        // Most of these clients have no slot before the states above have expired.
        for number in 0..100 {
            assert!(passes(&quota, &store, number, "/a", 1000));
            assert!(passes(&quota, &store, number, "/a", 1000));
        }
        for number in 0..100 {
            assert!(!passes(&quota, &store, number, "/a", 1010), "{algorithm}");
        }
    }
}

#[test]
fn the_sketch_permits_no_more_than_a_burst_in_any_window() {
    for (algorithm, expected) in [
        ("sliding_window", 3),
        ("token_bucket", 2),
        ("leaky_bucket", 2),
    ] {
        let rule = format!("quota: 3, duration: 600, algorithm: {algorithm}, bucket_size: 2");
        let quota = quota("/a", &rule);
        // The windows of the sketch are aligned with the clock: one ends at 1,200 s.
        let take = |second| quota.overflow.take(7, Instant(second * SECOND_NS));
        let passed = [1198, 1199, 1199, 1201, 1201, 1202].map(take);
        let passed = passed
            .iter()
            .filter(|one| matches!(one, AlgorithmDecision::Passed { .. }));
        assert_eq!(passed.count(), expected, "{algorithm}");
    }
}

#[test]
fn the_sketch_of_an_unchanged_rule_survives_a_reload() {
    let rule = "quota: 2, duration: 600";
    let before = quota("/a", rule);
    let take = |quota: &Quota| {
        let decision = quota.overflow.take(7, Instant(1000 * SECOND_NS));
        matches!(decision, AlgorithmDecision::Passed { .. })
    };
    assert_eq!(
        [take(&before), take(&before), take(&before)],
        [true, true, false]
    );
    assert!(!take(&quota("/a", rule).replacing(Some(&before))));
    assert!(take(&quota("/b", rule).replacing(Some(&before))));
    assert!(take(
        &quota("/a", "quota: 3, duration: 600").replacing(Some(&before))
    ));
}

#[test]
fn all_lines_of_a_header_are_one_key() {
    let store = QuotaStore::new();
    let quota = quota(
        "/a",
        "quota: 1, duration: 600, per: ['header:x-api-key', 'header:x-tenant']",
    );
    let passes = |lines: &[(&'static str, &str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        let decision = quota.take(&store, client(1), "/a", &headers, Instant(1000 * SECOND_NS));
        matches!(decision, QuotaDecision::Passed(_))
    };
    assert!(passes(&[("x-api-key", "a"), ("x-api-key", "b")]));
    assert!(!passes(&[("x-api-key", "a, b")]));
    assert!(passes(&[("x-api-key", "a"), ("x-api-key", "c")]));
    assert!(passes(&[("x-api-key", "a")]));
    assert!(passes(&[("x-tenant", "a")]));
    assert!(passes(&[]));
    assert!(passes(&[("x-api-key", "")]));
}

#[test]
fn a_user_has_one_quota_and_anonymous_requests_have_that_of_their_client() {
    let (store, headers) = (QuotaStore::new(), HeaderMap::new());
    let mut rule = rule(1, 60);
    rule.per = vec![QuotaKeyPart::User];
    let quota = Quota::new("/a", &rule);
    let passes = |number, user: Option<i64>| {
        let sender = QuotaSender {
            client: client(number),
            user: user.map(UserId),
        };
        let decision = quota.take(&store, sender, "/a", &headers, Instant(SECOND_NS));
        matches!(decision, QuotaDecision::Passed(_))
    };
    for (number, user, expected) in [
        (1, Some(7), true),
        (2, Some(7), false),
        (1, Some(8), true),
        (1, None, true),
        (1, None, false),
        (2, None, true),
    ] {
        assert_eq!(passes(number, user), expected, "{number} {user:?}");
    }
}
