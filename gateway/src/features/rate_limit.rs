//! Rate limiting: quotas of requests per time, exact under concurrency, in memory of fixed size.
//!
//! A request's key is the hash of its rule and of the values that `per` names. The [`QuotaStore`] keeps the
//! state of each key, and an algorithm decides by it: [`fixed_window`], [`sliding_window`],
//! [`token_bucket`] or [`leaky_bucket`]. Keys that have no slot in the store are counted by a
//! [count-min sketch](count_min_sketch).
//!
//! A client that uses more keys than [`key_limit`] permits has one further key for all the others, and each
//! of their requests has to pass under both.
//!
//! At an upgrade the counters are [handed over](hand_over) to the new process.
//!
//! Where several gateways [share](shared) their quotas, a request passes by a [lease](sharing) instead, and the
//! state in the store of this process is what counts while the shared store is away.

mod algorithm;
mod count_min_sketch;
mod fixed_window;
pub(crate) mod hand_over;
mod key_hasher;
mod key_limit;
mod leaky_bucket;
pub(crate) mod shared;
pub(crate) mod sharing;
mod sliding_window;
mod store;
mod token_bucket;

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::BufMut;
use http::header::COOKIE;
use http::{HeaderMap, HeaderName, HeaderValue};
use logging::put_number;
use session_invalidation::UserId;

use crate::client::ClientKey;
use crate::config::{
    ErrorResponseSettings, QuotaKeyPart, RateLimitAlgorithm, RateLimitMode, RateLimitSettings,
    is_spelling_of,
};
use crate::runtime::clock::{Instant, whole_seconds};
use crate::telemetry::text;
use algorithm::{AlgorithmDecision, QuotaPolicy, QuotaState, number_of};
use count_min_sketch::CountMinSketch;
use key_hasher::KeyHasher;
use key_limit::EpochLength;
use store::HandedOver;
pub(crate) use store::QuotaStore;
use store::{AfterHandOver, CountingRule, NotCounted, SlotAccess};

/// Name of the quota policy in `RateLimit` and `RateLimit-Policy`. A response carries one at most.
const POLICY_NAME: &str = "default";

/// Rule of a quota, which routes with the same settings share.
#[derive(Debug)]
pub(crate) struct QuotaRule {
    policy: QuotaPolicy,
    algorithm: RateLimitAlgorithm,
    mode: RateLimitMode,
    per: Vec<QuotaKeyPart>,
    error_response: ErrorResponseSettings,
    policy_header: HeaderValue,
    epoch_length: EpochLength,
}

/// Quota of one route.
#[derive(Debug)]
pub(crate) struct Quota {
    /// Hash of the pattern and the rule: a reload or an upgrade that does not change them keeps the counters.
    id: u64,
    pattern: Arc<str>,
    rule: Arc<QuotaRule>,
    overflow: Arc<CountMinSketch>,
}

/// Status of a quota for one key, as the `RateLimit` header reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QuotaStatus {
    pub(crate) remaining: u32,
    /// Whole seconds, rounded up.
    pub(crate) reset: u64,
}

/// Sender of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QuotaSender {
    pub(crate) client: ClientKey,
    /// `None` for an anonymous request.
    pub(crate) user: Option<UserId>,
}

impl From<ClientKey> for QuotaSender {
    fn from(client: ClientKey) -> Self {
        Self { client, user: None }
    }
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

impl QuotaRule {
    pub(crate) fn new(settings: &RateLimitSettings) -> Self {
        let policy = QuotaPolicy::of(settings);
        Self {
            policy,
            algorithm: settings.algorithm,
            mode: settings.mode,
            per: settings.per.clone(),
            error_response: settings.error_response.clone(),
            policy_header: policy_header(policy, settings.algorithm),
            epoch_length: EpochLength::of(policy),
        }
    }
}

impl Quota {
    /// Creates the quota of the requests that match `pattern`, by a rule of its own.
    pub(crate) fn new(pattern: &str, settings: &RateLimitSettings) -> Self {
        Self::with_rule(pattern.into(), Arc::new(QuotaRule::new(settings)))
    }

    /// Creates the quota of the requests that match `pattern`.
    pub(crate) fn with_rule(pattern: Arc<str>, rule: Arc<QuotaRule>) -> Self {
        Self {
            id: rule_id(&pattern, &rule),
            pattern,
            overflow: Arc::new(CountMinSketch::new(rule.algorithm, rule.policy)),
            rule,
        }
    }

    /// Keeps the counters outside of the store of the quota that this one replaces, if pattern and rule
    /// are the same.
    pub(crate) fn replacing(mut self, previous: Option<&Self>) -> Self {
        if let Some(previous) = previous.filter(|previous| previous.id == self.id) {
            self.overflow = Arc::clone(&previous.overflow);
        }
        self
    }

    /// Returns the value of `RateLimit-Policy`.
    pub(crate) fn policy_header(&self) -> &HeaderValue {
        &self.rule.policy_header
    }

    /// Returns whether requests over the quota are rejected.
    pub(crate) fn mode(&self) -> RateLimitMode {
        self.rule.mode
    }

    /// Returns the configured response to rejected requests.
    pub(crate) fn error_response(&self) -> &ErrorResponseSettings {
        &self.rule.error_response
    }

    /// Decides about a request, and counts it in this process unless it is rejected.
    pub(crate) fn take(
        &self,
        store: &QuotaStore,
        sender: impl Into<QuotaSender>,
        path: &str,
        headers: &HeaderMap,
        now: Instant,
    ) -> QuotaDecision {
        let sender = sender.into();
        let key = self.key(store, sender, path, headers);
        let count = self.count(now, AfterHandOver::Count);
        let decision = count
            .take(store, sender.client, key)
            .unwrap_or_else(|HandedOver| count.take_without_slot(key));
        to_quota_decision(decision)
    }

    /// Decides about a request by its key, as [`Self::take`] does.
    ///
    /// # Errors
    /// Returns an error, and counts nothing, if the store was handed over to another process.
    fn take_unless_handed_over(
        &self,
        store: &QuotaStore,
        client: ClientKey,
        key: u64,
        now: Instant,
    ) -> Result<QuotaDecision, HandedOver> {
        let count = self.count(now, AfterHandOver::Refuse);
        count.take(store, client, key).map(to_quota_decision)
    }

    fn count(&self, now: Instant, after_hand_over: AfterHandOver) -> Count<'_> {
        Count {
            quota: self,
            now,
            after_hand_over,
        }
    }

    /// Returns whether requests are counted for each user.
    pub(crate) fn counts_users(&self) -> bool {
        self.rule.per.contains(&QuotaKeyPart::User)
    }

    fn key(&self, store: &QuotaStore, sender: QuotaSender, path: &str, headers: &HeaderMap) -> u64 {
        let per = &self.rule.per;
        hash_request(store.hasher(), self.id, per, sender, path, headers)
    }
}

/// Hashes a rule together with its pattern. The hash is the same in every process, so every value is written as bytes of
/// defined order and number.
fn rule_id(pattern: &str, rule: &QuotaRule) -> u64 {
    let policy = rule.policy;
    let mut hasher = KeyHasher::PUBLIC.build_hasher();
    let mut write = |bytes: &[u8]| {
        hasher.write(&(bytes.len() as u64).to_le_bytes());
        hasher.write(bytes);
    };
    write(pattern.as_bytes());
    write(&policy.quota.to_le_bytes());
    write(&policy.window_ns.to_le_bytes());
    write(&policy.bucket_size.to_le_bytes());
    write(&[number_of(rule.algorithm)]);
    for part in &rule.per {
        match part {
            QuotaKeyPart::Client => write(b"client"),
            QuotaKeyPart::User => write(b"user"),
            QuotaKeyPart::Path => write(b"path"),
            QuotaKeyPart::Header(name) => {
                write(b"header");
                write(name.as_str().as_bytes());
            }
        }
    }
    hasher.finish()
}

/// Hashes the rule with the number `id` and the values of a request that `per` names.
fn hash_request(
    hasher: KeyHasher,
    id: u64,
    per: &[QuotaKeyPart],
    QuotaSender { client, user }: QuotaSender,
    path: &str,
    headers: &HeaderMap,
) -> u64 {
    let mut hasher = hasher.build_hasher();
    id.hash(&mut hasher);
    for part in per {
        match part {
            QuotaKeyPart::Client => client.hash(&mut hasher),
            // The variant is hashed too: the number of a user is no client.
            QuotaKeyPart::User => user.ok_or(client).hash(&mut hasher),
            QuotaKeyPart::Path => path.hash(&mut hasher),
            QuotaKeyPart::Header(name) => hash_header(headers, name, &mut hasher),
        }
    }
    hasher.finish()
}

/// Hashes the combined value of a header: however a client divides it into lines, it has one key.
fn hash_header(headers: &HeaderMap, name: &HeaderName, hasher: &mut impl Hasher) {
    let separator = line_separator(name);
    let (mut number, mut length) = (0_usize, 0_usize);
    for line in lines_of(headers, name) {
        if number > 0 {
            hasher.write(separator);
            length += separator.len();
        }
        hasher.write(line);
        length += line.len();
        number += 1;
    }
    // The length separates the value from the next part of the key.
    (number > 0, length).hash(hasher);
}

/// Returns the lines of a header, whose `name` is folded, in any spelling that a server could take for it.
fn lines_of<'h>(headers: &'h HeaderMap, name: &'h HeaderName) -> impl Iterator<Item = &'h [u8]> {
    let is_spelling = |(line_name, _): &(&HeaderName, _)| is_spelling_of(line_name, name.as_str());
    let lines = headers.iter().filter(is_spelling);
    lines.map(|(_, value)| value.as_bytes())
}

/// Returns what separates the lines of a header when they are combined (RFC 9110, section 5.3; RFC 6265, section 5.4).
fn line_separator(name: &HeaderName) -> &'static [u8] {
    if *name == COOKIE { b"; " } else { b", " }
}

fn to_quota_decision(decision: AlgorithmDecision) -> QuotaDecision {
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

/// Counting of one request by the rule of a quota.
struct Count<'q> {
    quota: &'q Quota,
    now: Instant,
    after_hand_over: AfterHandOver,
}

impl Count<'_> {
    fn take(
        &self,
        store: &QuotaStore,
        client: ClientKey,
        key: u64,
    ) -> Result<AlgorithmDecision, HandedOver> {
        let access = SlotAccess::Charged(self.quota.rule.epoch_length.owner(client, self.now));
        match store.update(key, access, self.now, self) {
            Ok(decision) => Ok(decision),
            Err(NotCounted::KeyLimitExceeded) => self.take_over_key_limit(store, client, key),
            Err(NotCounted::HandedOver) => Err(HandedOver),
        }
    }

    /// Decides about a request of a client that has as many keys as it may: it has to pass both under the
    /// one key for the rest of the client's requests, and under its own, which gets no slot. What
    /// the first one takes is lost if the second one rejects the request: the client alone bears it.
    fn take_over_key_limit(
        &self,
        store: &QuotaStore,
        client: ClientKey,
        key: u64,
    ) -> Result<AlgorithmDecision, HandedOver> {
        let rest = store.hash((self.quota.id, client));
        let update = |key, access| match store.update(key, access, self.now, self) {
            Ok(decision) => Ok(decision),
            Err(NotCounted::KeyLimitExceeded) => Ok(self.take_without_slot(key)),
            Err(NotCounted::HandedOver) => Err(HandedOver),
        };
        match update(rest, SlotAccess::Free)? {
            passed @ AlgorithmDecision::Passed { .. } => {
                Ok(passed.and(update(key, SlotAccess::ExistingOnly)?))
            }
            rejected @ AlgorithmDecision::Rejected { .. } => Ok(rejected),
        }
    }
}

impl CountingRule for Count<'_> {
    fn take_from_slot(&self, state: &mut QuotaState) -> AlgorithmDecision {
        let (policy, now) = (self.quota.rule.policy, self.now);
        match self.quota.rule.algorithm {
            RateLimitAlgorithm::FixedWindow => fixed_window::take(state, policy, now),
            RateLimitAlgorithm::SlidingWindow => sliding_window::take(state, policy, now),
            RateLimitAlgorithm::TokenBucket => token_bucket::take(state, policy, now),
            RateLimitAlgorithm::LeakyBucket => leaky_bucket::take(state, policy, now),
        }
    }

    fn take_without_slot(&self, key: u64) -> AlgorithmDecision {
        self.quota.overflow.take(key, self.now)
    }

    fn after_hand_over(&self) -> AfterHandOver {
        self.after_hand_over
    }

    fn initial_state(&self, key: u64) -> (QuotaState, Instant) {
        let (policy, now) = (self.quota.rule.policy, self.now);
        let count = self.quota.overflow.count(key, now);
        if count == 0 {
            return Default::default();
        }
        match self.quota.rule.algorithm {
            RateLimitAlgorithm::FixedWindow => fixed_window::state_after(count, policy, now),
            RateLimitAlgorithm::SlidingWindow => sliding_window::state_after(count, policy, now),
            RateLimitAlgorithm::TokenBucket | RateLimitAlgorithm::LeakyBucket => {
                token_bucket::state_after(count, policy, now)
            }
        }
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
            put_number(value, self.remaining);
            value.put_slice(b";t=");
            put_number(value, self.reset);
        })
    }
}

#[cfg(test)]
mod tests;
