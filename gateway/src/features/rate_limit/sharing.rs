//! Decisions about requests whose quota several gateways share.
//!
//! A request passes by a lease. It is also counted in the store of this process, without a decision, so that
//! this gateway does not begin anew if it has to count alone. The limit of keys per client is that of
//! the store of this process.

use std::time::Duration;

use http::HeaderMap;

use super::algorithm::{AlgorithmDecision, QuotaState, number_of};
use super::shared::{HashKey, KeyWriter, LeaseDecision, LeaseTerms, SharedQuotas, StoreKey};
use super::store::{AfterHandOver, CountingRule, QuotaStore, SlotAccess};
use super::{
    Count, Quota, QuotaDecision, QuotaRule, QuotaSender, QuotaStatus, fixed_window, line_separator,
    lines_of, sliding_window, token_bucket,
};
use crate::config::{QuotaKeyPart, RateLimitAlgorithm};
use crate::runtime::clock::{Instant, whole_seconds};

/// Purposes of keys in the store.
const KEY_OF_REQUEST: u8 = b'q';
const KEY_OF_REST: u8 = b'r';

/// Parts of a request that select its key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QuotaRequest<'r> {
    pub(crate) sender: QuotaSender,
    pub(crate) path: &'r str,
    pub(crate) headers: &'r HeaderMap,
}

impl Quota {
    /// Decides about a request by a lease from the shared store. Returns `None` if the store cannot be used or
    /// has not responded within `timeout`.
    pub(crate) async fn take_shared(
        &self,
        store: &QuotaStore,
        shared: &SharedQuotas,
        request: QuotaRequest<'_>,
        timeout: Duration,
    ) -> Option<QuotaDecision> {
        let id = self.key(store, request.sender, request.path, request.headers);
        let now = Instant::now();
        let access = SlotAccess::Charged(self.rule.epoch_length.owner(request.sender.client, now));
        if let Some(decision) = shared.take_ready(id, now) {
            self.record(store, id, access, decision, now);
            return Some(to_quota_decision(decision, now));
        }
        let count = self.count(now, AfterHandOver::Count);
        if !shared.has(id) && store.update(id, access, now, &Reservation(&count)).is_err() {
            return self
                .take_shared_over_key_limit(store, shared, request, timeout)
                .await;
        }
        let key = |hash_key: &HashKey| self.store_key(request, hash_key);
        let (decision, now) = shared.take(id, key, self.lease_terms(), timeout).await?;
        self.record(store, id, access, decision, now);
        Some(to_quota_decision(decision, now))
    }

    /// Decides about a request of a client that has as many keys as it may, as
    /// [`Count::take_over_key_limit`] does.
    async fn take_shared_over_key_limit(
        &self,
        store: &QuotaStore,
        shared: &SharedQuotas,
        request: QuotaRequest<'_>,
        timeout: Duration,
    ) -> Option<QuotaDecision> {
        let terms = self.lease_terms();
        let rest = store.hash((self.id, request.sender.client));
        let rest_key = |hash_key: &HashKey| {
            let mut writer = self.key_writer(KEY_OF_REST);
            writer.part(&request.sender.client.bits().to_be_bytes());
            writer.finish(hash_key)
        };
        let (first, now) = shared.take(rest, rest_key, terms, timeout).await?;
        self.record(store, rest, SlotAccess::Free, first, now);
        if let LeaseDecision::Rejected { .. } = first {
            return Some(to_quota_decision(first, now));
        }
        // The entry is apart from that of a key within the limit, which would not count for the rest.
        let id = self.key(store, request.sender, request.path, request.headers);
        let key = |hash_key: &HashKey| self.store_key(request, hash_key);
        let entry = store.hash((id, KEY_OF_REST));
        let (second, now) = shared.take(entry, key, terms, timeout).await?;
        self.record(store, id, SlotAccess::ExistingOnly, second, now);
        Some(to_quota_decision(first.and(second), now))
    }

    fn lease_terms(&self) -> LeaseTerms {
        LeaseTerms::new(self.rule.algorithm, self.rule.policy)
    }

    /// Counts a request that passed by a lease in the store of this process.
    fn record(
        &self,
        store: &QuotaStore,
        id: u64,
        access: SlotAccess,
        decision: LeaseDecision,
        now: Instant,
    ) {
        if let LeaseDecision::Passed { reset, .. } = decision {
            let count = self.count(now, AfterHandOver::Count);
            let recording = Recording {
                count: &count,
                window_end: reset,
            };
            if store.update(id, access, now, &recording).is_err() {
                recording.take_without_slot(id);
            }
        }
    }

    /// Begins the name of a key in the store: pattern and rule, which a reload may change, are parts of it.
    fn key_writer(&self, purpose: u8) -> KeyWriter {
        let mut writer = KeyWriter::new(purpose);
        writer.part(self.pattern.as_bytes());
        let QuotaRule {
            policy, algorithm, ..
        } = &*self.rule;
        writer.number(policy.quota.into());
        writer.number(policy.window_ns);
        writer.number(policy.bucket_size.into());
        writer.number(number_of(*algorithm).into());
        writer
    }

    fn store_key(&self, request: QuotaRequest<'_>, hash_key: &HashKey) -> StoreKey {
        let mut writer = self.key_writer(KEY_OF_REQUEST);
        for part in &self.rule.per {
            match part {
                QuotaKeyPart::Client => {
                    writer.part(b"client");
                    writer.part(&request.sender.client.bits().to_be_bytes());
                }
                QuotaKeyPart::User => {
                    let QuotaSender { client, user } = request.sender;
                    if let Some(user) = user {
                        writer.part(b"user");
                        writer.part(&user.0.to_be_bytes());
                    } else {
                        writer.part(b"anonymous");
                        writer.part(&client.bits().to_be_bytes());
                    }
                }
                QuotaKeyPart::Path => {
                    writer.part(b"endpoint");
                    writer.part(request.path.as_bytes());
                }
                QuotaKeyPart::Header(name) => {
                    let lines: Vec<_> = lines_of(request.headers, name).collect();
                    writer.part(name.as_str().as_bytes());
                    writer.number((!lines.is_empty()).into());
                    writer.part(&lines.join(line_separator(name)));
                }
            }
        }
        writer.finish(hash_key)
    }
}

fn to_quota_decision(decision: LeaseDecision, now: Instant) -> QuotaDecision {
    match decision {
        LeaseDecision::Passed {
            remaining,
            reset,
            delay,
        } => {
            let status = QuotaStatus {
                remaining,
                reset: whole_seconds(reset.since(now)),
            };
            if delay.is_zero() {
                QuotaDecision::Passed(status)
            } else {
                QuotaDecision::Delayed(status, delay)
            }
        }
        LeaseDecision::Rejected { until } => {
            let seconds = whole_seconds(until.since(now)).max(1);
            let status = QuotaStatus {
                remaining: 0,
                reset: seconds,
            };
            QuotaDecision::Rejected(status, seconds)
        }
    }
}

/// Rule that charges a key to its client and counts nothing.
struct Reservation<'c>(&'c Count<'c>);

impl CountingRule for Reservation<'_> {
    fn take_from_slot(&self, _state: &mut QuotaState) -> AlgorithmDecision {
        // A rejection leaves the expiry of the slot as it is.
        NOTHING_COUNTED
    }

    fn take_without_slot(&self, _key: u64) -> AlgorithmDecision {
        NOTHING_COUNTED
    }

    fn initial_state(&self, key: u64) -> (QuotaState, Instant) {
        self.0.initial_state(key)
    }

    fn after_hand_over(&self) -> AfterHandOver {
        AfterHandOver::Count
    }
}

const NOTHING_COUNTED: AlgorithmDecision = AlgorithmDecision::Rejected {
    retry_after: Duration::ZERO,
};

/// Rule that counts a request that has passed already.
struct Recording<'c> {
    count: &'c Count<'c>,
    /// End of the shared window, for a fixed window.
    window_end: Instant,
}

impl CountingRule for Recording<'_> {
    fn take_from_slot(&self, state: &mut QuotaState) -> AlgorithmDecision {
        let (policy, now) = (self.count.quota.rule.policy, self.count.now);
        let expiry = match self.count.quota.rule.algorithm {
            RateLimitAlgorithm::FixedWindow => fixed_window::record(state, self.window_end, now),
            RateLimitAlgorithm::SlidingWindow => sliding_window::record(state, policy, now),
            RateLimitAlgorithm::TokenBucket | RateLimitAlgorithm::LeakyBucket => {
                token_bucket::record(state, policy, now)
            }
        };
        AlgorithmDecision::Passed {
            remaining: 0,
            reset: Duration::ZERO,
            delay: Duration::ZERO,
            expiry,
        }
    }

    fn take_without_slot(&self, key: u64) -> AlgorithmDecision {
        self.count.take_without_slot(key)
    }

    fn initial_state(&self, key: u64) -> (QuotaState, Instant) {
        self.count.initial_state(key)
    }

    fn after_hand_over(&self) -> AfterHandOver {
        AfterHandOver::Count
    }
}
