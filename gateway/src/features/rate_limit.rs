//! So many requests in so much time: quotas, exact under concurrency, in fixed memory.

mod fixed_window;
mod leaky_bucket;
mod overflow;
mod sliding_window;
mod store;
mod token_bucket;

use std::hash::{BuildHasher, Hash, Hasher};
use std::time::Duration;

use bytes::BufMut;
use http::{HeaderMap, HeaderValue};

use crate::client::ClientKey;
use crate::config::{Algorithm, Per, RateLimit, Refusal};
use crate::moment::{Moment, nanoseconds};
use crate::text;
use overflow::Overflow;
pub(crate) use store::QuotaStore;

/// A quota's name in `RateLimit` and `RateLimit-Policy`: there is one for each path.
const POLICY: &str = "default";

/// What one quota knows about one of those it is counted for.
///
/// Each algorithm says what its fields mean; all zero is somebody who was never seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct State {
    mark: u64,
    counts: [u32; COUNTS],
}

/// With when it may be forgotten a state fills a cache line.
const COUNTS: usize = 12;

/// What an algorithm says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed {
        remaining: u32,
        /// Until the whole quota is there again.
        reset: Duration,
        /// To hold the request back.
        delay: Duration,
        /// When the state is worth nothing any more.
        forget: Moment,
    },
    Refused {
        /// Until a request may pass.
        retry_after: Duration,
    },
}

/// The numbers that an algorithm counts by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Allowance {
    quota: u32,
    /// Nanoseconds.
    duration: u64,
    /// Token and leaky bucket.
    bucket: u32,
}

impl Allowance {
    /// Nanoseconds that one request takes out of `duration`, rounded up so that no more than the
    /// quota ever fits in.
    fn interval(self) -> u64 {
        self.duration.div_ceil(u64::from(self.quota)).max(1)
    }

    /// Nanoseconds that a full bucket takes to drain.
    fn depth(self) -> u64 {
        self.interval().saturating_mul(u64::from(self.bucket))
    }
}

/// A quota as a route has it.
#[derive(Debug)]
pub(crate) struct Quota {
    /// The same for a rule that a reload did not change.
    id: u64,
    allowance: Allowance,
    algorithm: Algorithm,
    per: Vec<Per>,
    refusal: Refusal,
    policy: HeaderValue,
    overflow: Overflow,
}

/// How a quota stands for a client, as it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) remaining: u32,
    /// Whole seconds, rounded up.
    pub(crate) reset: u64,
}

/// What a quota says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passed(Standing),
    /// To be held back for so long first.
    Delayed(Standing, Duration),
    /// Whole seconds until it is worth trying again, rounded up, 1 at least.
    Refused(Standing, u64),
}

impl Quota {
    /// A quota for the requests under `pattern`, counted in `store`.
    pub(crate) fn new(pattern: &str, rule: &RateLimit, store: &QuotaStore) -> Self {
        let allowance = Allowance {
            quota: rule.quota.get(),
            duration: nanoseconds(rule.duration),
            bucket: rule.bucket_size.get(),
        };
        Self {
            id: store.hash((pattern, allowance, rule.algorithm, &rule.per)),
            allowance,
            algorithm: rule.algorithm,
            per: rule.per.clone(),
            refusal: rule.refusal.clone(),
            policy: policy(allowance, rule.algorithm),
            overflow: Overflow::default(),
        }
    }

    /// The value of `RateLimit-Policy`.
    pub(crate) fn policy(&self) -> &HeaderValue {
        &self.policy
    }

    pub(crate) fn refusal(&self) -> &Refusal {
        &self.refusal
    }

    /// Counts a request in, or refuses it and counts nothing.
    pub(crate) fn take(
        &self,
        store: &QuotaStore,
        client: ClientKey,
        path: &str,
        headers: &HeaderMap,
        now: Moment,
    ) -> Verdict {
        let key = self.key(store, client, path, headers);
        let outcome = store
            .update(key, now, |state| self.decide(state, now))
            .unwrap_or_else(|_full| self.overflow.take(key, self.allowance, now));
        match outcome {
            Outcome::Passed {
                remaining,
                reset,
                delay,
                ..
            } => {
                let standing = Standing {
                    remaining,
                    reset: whole_seconds(reset),
                };
                if delay.is_zero() {
                    Verdict::Passed(standing)
                } else {
                    Verdict::Delayed(standing, delay)
                }
            }
            Outcome::Refused { retry_after } => {
                let seconds = whole_seconds(retry_after).max(1);
                let standing = Standing {
                    remaining: 0,
                    reset: seconds,
                };
                Verdict::Refused(standing, seconds)
            }
        }
    }

    fn decide(&self, state: &mut State, now: Moment) -> Outcome {
        match self.algorithm {
            Algorithm::FixedWindow => fixed_window::take(state, self.allowance, now),
            Algorithm::SlidingWindow => sliding_window::take(state, self.allowance, now),
            Algorithm::TokenBucket => token_bucket::take(state, self.allowance, now),
            Algorithm::LeakyBucket => leaky_bucket::take(state, self.allowance, now),
        }
    }

    fn key(&self, store: &QuotaStore, client: ClientKey, path: &str, headers: &HeaderMap) -> u64 {
        let mut hasher = store.hasher().build_hasher();
        self.id.hash(&mut hasher);
        for part in &self.per {
            match part {
                Per::Client => client.hash(&mut hasher),
                Per::Endpoint => path.hash(&mut hasher),
                Per::Header(name) => headers
                    .get(name)
                    .map(HeaderValue::as_bytes)
                    .hash(&mut hasher),
            }
        }
        hasher.finish()
    }
}

/// `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10, section 3): the quota and its
/// window in whole seconds.
fn policy(allowance: Allowance, algorithm: Algorithm) -> HeaderValue {
    let quota = match algorithm {
        Algorithm::FixedWindow | Algorithm::SlidingWindow => allowance.quota,
        Algorithm::TokenBucket | Algorithm::LeakyBucket => allowance.bucket,
    };
    let window = whole_seconds(Duration::from_nanos(allowance.duration));
    HeaderValue::try_from(format!("\"{POLICY}\";q={quota};w={window}"))
        .expect("digits and a constant name")
}

impl Standing {
    /// The value of `RateLimit` (section 4 of the same draft).
    pub(crate) fn header(self) -> HeaderValue {
        text::header_value(|value| {
            value.put_u8(b'"');
            value.put_slice(POLICY.as_bytes());
            value.put_slice(b"\";r=");
            text::number(value, self.remaining);
            value.put_slice(b";t=");
            text::number(value, self.reset);
        })
    }
}

fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests;
