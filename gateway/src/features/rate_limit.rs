//! Rate limiting: quotas of requests per time, exact under concurrency, in memory of fixed size.
//!
//! A request's key is the hash of its rule and of the values that `per` names. The [`QuotaStore`] keeps the
//! state of each key, and an algorithm decides by it: [`fixed_window`], [`sliding_window`],
//! [`token_bucket`] or [`leaky_bucket`]. Keys that have no slot in the store are counted by a
//! [count-min sketch](count_min_sketch).

mod algorithm;
mod count_min_sketch;
mod fixed_window;
mod leaky_bucket;
mod sliding_window;
mod store;
mod token_bucket;

use std::hash::{BuildHasher, Hash, Hasher};
use std::time::Duration;

use bytes::BufMut;
use http::{HeaderMap, HeaderValue};

use crate::client::ClientKey;
use crate::config::{ErrorResponseSettings, QuotaKeyPart, RateLimitAlgorithm, RateLimitSettings};
use crate::runtime::clock::{Instant, nanoseconds, whole_seconds};
use crate::telemetry::text;
use algorithm::{AlgorithmDecision, QuotaPolicy, QuotaState};
use count_min_sketch::CountMinSketch;
pub(crate) use store::QuotaStore;

/// Name of the quota policy in `RateLimit` and `RateLimit-Policy`. A response carries one at most.
const POLICY_NAME: &str = "default";

/// Quota of one route.
#[derive(Debug)]
pub(crate) struct Quota {
    /// Hash of the pattern and the rule: a reload that does not change them keeps the counters.
    id: u64,
    policy: QuotaPolicy,
    algorithm: RateLimitAlgorithm,
    per: Vec<QuotaKeyPart>,
    error_response: ErrorResponseSettings,
    policy_header: HeaderValue,
    overflow: CountMinSketch,
}

/// Status of a quota for one key, as the `RateLimit` header reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QuotaStatus {
    pub(crate) remaining: u32,
    /// Whole seconds, rounded up.
    pub(crate) reset: u64,
}

/// Decision of a quota about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QuotaDecision {
    Passed(QuotaStatus),
    /// The request passes after this delay.
    Delayed(QuotaStatus, Duration),
    /// The request may be repeated after these whole seconds, rounded up, at least 1.
    Rejected(QuotaStatus, u64),
}

impl Quota {
    /// Creates the quota of the requests that match `pattern`. Its states are kept in `store`.
    pub(crate) fn new(pattern: &str, rule: &RateLimitSettings, store: &QuotaStore) -> Self {
        let policy = QuotaPolicy {
            quota: rule.quota.get(),
            window_ns: nanoseconds(rule.duration),
            bucket_size: rule.bucket_size.get(),
        };
        Self {
            id: store.hash((pattern, policy, rule.algorithm, &rule.per)),
            policy,
            algorithm: rule.algorithm,
            per: rule.per.clone(),
            error_response: rule.error_response.clone(),
            policy_header: policy_header(policy, rule.algorithm),
            overflow: CountMinSketch::default(),
        }
    }

    /// Returns the value of `RateLimit-Policy`.
    pub(crate) fn policy_header(&self) -> &HeaderValue {
        &self.policy_header
    }

    /// Returns the configured response to rejected requests.
    pub(crate) fn error_response(&self) -> &ErrorResponseSettings {
        &self.error_response
    }

    /// Decides about a request, and counts it unless it is rejected.
    pub(crate) fn take(
        &self,
        store: &QuotaStore,
        client: ClientKey,
        path: &str,
        headers: &HeaderMap,
        now: Instant,
    ) -> QuotaDecision {
        let key = self.key(store, client, path, headers);
        let decision = store
            .update(key, now, |state| self.apply_algorithm(state, now))
            .unwrap_or_else(|_full| self.overflow.take(key, self.policy, now));
        match decision {
            AlgorithmDecision::Passed {
                remaining,
                reset,
                delay,
                ..
            } => {
                let status = QuotaStatus {
                    remaining,
                    reset: whole_seconds(reset),
                };
                if delay.is_zero() {
                    QuotaDecision::Passed(status)
                } else {
                    QuotaDecision::Delayed(status, delay)
                }
            }
            AlgorithmDecision::Rejected { retry_after } => {
                let seconds = whole_seconds(retry_after).max(1);
                let status = QuotaStatus {
                    remaining: 0,
                    reset: seconds,
                };
                QuotaDecision::Rejected(status, seconds)
            }
        }
    }

    fn apply_algorithm(&self, state: &mut QuotaState, now: Instant) -> AlgorithmDecision {
        match self.algorithm {
            RateLimitAlgorithm::FixedWindow => fixed_window::take(state, self.policy, now),
            RateLimitAlgorithm::SlidingWindow => sliding_window::take(state, self.policy, now),
            RateLimitAlgorithm::TokenBucket => token_bucket::take(state, self.policy, now),
            RateLimitAlgorithm::LeakyBucket => leaky_bucket::take(state, self.policy, now),
        }
    }

    fn key(&self, store: &QuotaStore, client: ClientKey, path: &str, headers: &HeaderMap) -> u64 {
        let mut hasher = store.hasher().build_hasher();
        self.id.hash(&mut hasher);
        for part in &self.per {
            match part {
                QuotaKeyPart::Client => client.hash(&mut hasher),
                QuotaKeyPart::Path => path.hash(&mut hasher),
                QuotaKeyPart::Header(name) => headers
                    .get(name)
                    .map(HeaderValue::as_bytes)
                    .hash(&mut hasher),
            }
        }
        hasher.finish()
    }
}

/// Returns the value of `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10, section 3): the
/// quota and its window in whole seconds.
fn policy_header(policy: QuotaPolicy, algorithm: RateLimitAlgorithm) -> HeaderValue {
    let quota = match algorithm {
        RateLimitAlgorithm::FixedWindow | RateLimitAlgorithm::SlidingWindow => policy.quota,
        RateLimitAlgorithm::TokenBucket | RateLimitAlgorithm::LeakyBucket => policy.bucket_size,
    };
    let window = whole_seconds(Duration::from_nanos(policy.window_ns));
    HeaderValue::try_from(format!("\"{POLICY_NAME}\";q={quota};w={window}"))
        .expect("a constant name and digits are a header value")
}

impl QuotaStatus {
    /// Returns the value of `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10, section 4).
    pub(crate) fn header_value(self) -> HeaderValue {
        text::header_value(|value| {
            value.put_u8(b'"');
            value.put_slice(POLICY_NAME.as_bytes());
            value.put_slice(b"\";r=");
            text::put_number(value, self.remaining);
            value.put_slice(b";t=");
            text::put_number(value, self.reset);
        })
    }
}

#[cfg(test)]
mod tests;
