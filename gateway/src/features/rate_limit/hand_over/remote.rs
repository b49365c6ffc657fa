//! Decisions of the process that the counters were handed over to, about requests that the old process still receives.
//!
//! A request is 32 bytes, a reply 21, both in the same order: rule, key and client, or what became of the request.

use std::sync::mpsc::SyncSender;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::{Buf, BufMut};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::client::ClientKey;
use crate::features::rate_limit::sharing::QuotaRequest;
use crate::features::rate_limit::{Quota, QuotaDecision, QuotaStatus, QuotaStore};
use crate::runtime::clock::{Instant, nanoseconds};

pub(crate) const REQUEST_BYTES: usize = 32;
pub(crate) const REPLY_BYTES: usize = 21;
/// Requests that may wait for a decision.
pub(crate) const MAX_PENDING: usize = 16_384;
/// Longest time that a request waits for a decision of the other process.
const DECISION_TIMEOUT: Duration = Duration::from_millis(500);

const UNKNOWN_RULE: u8 = 0;
const PASSED: u8 = 1;
const DELAYED: u8 = 2;
const REJECTED: u8 = 3;

/// Request for a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DecisionRequest {
    pub(super) quota: u64,
    pub(super) key: u64,
    pub(super) client: ClientKey,
}

/// Decision of the other process. `None` if it has no such rule.
pub(crate) type DecisionReply = Option<QuotaDecision>;

/// Request for a decision that waits for its reply.
#[derive(Debug)]
pub(crate) struct PendingDecision {
    pub(crate) request: DecisionRequest,
    pub(crate) reply: oneshot::Sender<DecisionReply>,
}

/// Queue to the process that has the counters.
#[derive(Debug)]
pub(crate) struct RemoteCounters {
    pub(crate) queue: SyncSender<PendingDecision>,
}

/// Outcome of a request for a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RemoteOutcome {
    Decided(QuotaDecision),
    UnknownRule,
    /// The other process has ended, or does not respond in time.
    NoReply,
}

impl RemoteCounters {
    async fn decide(&self, request: DecisionRequest) -> RemoteOutcome {
        let (reply, decision) = oneshot::channel();
        let pending = PendingDecision { request, reply };
        if self.queue.try_send(pending).is_err() {
            return RemoteOutcome::NoReply;
        }
        match timeout(DECISION_TIMEOUT, decision).await {
            Ok(Ok(Some(decision))) => RemoteOutcome::Decided(decision),
            Ok(Ok(None)) => RemoteOutcome::UnknownRule,
            Ok(Err(_)) | Err(_) => RemoteOutcome::NoReply,
        }
    }
}

impl Quota {
    /// Decides about a request by the counters of this process, or by those of the process that they were handed over
    /// to. If that one does not respond, it is not asked any more: this process goes on counting alone.
    pub(crate) async fn take_where_counted(
        &self,
        store: &QuotaStore,
        remote: &ArcSwapOption<RemoteCounters>,
        request: QuotaRequest<'_>,
        now: Instant,
    ) -> QuotaDecision {
        let QuotaRequest {
            sender,
            path,
            headers,
        } = request;
        let (key, client) = (self.key(store, sender, path, headers), sender.client);
        if let Ok(decision) = self.take_unless_handed_over(store, client, key, now) {
            return decision;
        }
        let request = DecisionRequest {
            quota: self.id,
            key,
            client,
        };
        if let Some(counters) = remote.load_full() {
            match counters.decide(request).await {
                RemoteOutcome::Decided(decision) => return decision,
                RemoteOutcome::UnknownRule => {}
                RemoteOutcome::NoReply => {
                    if remote.swap(None).is_some() {
                        tracing::warn!(
                            "the new gateway does not decide about quotas: counting alone"
                        );
                    }
                }
            }
        }
        // The request may have waited.
        self.take(store, sender, path, headers, Instant::now())
    }
}

impl DecisionRequest {
    pub(crate) fn encode(self, buffer: &mut Vec<u8>) {
        buffer.put_u64_le(self.quota);
        buffer.put_u64_le(self.key);
        buffer.put_u128_le(self.client.bits());
    }

    pub(crate) fn decode(bytes: [u8; REQUEST_BYTES]) -> Self {
        let mut bytes = &bytes[..];
        Self {
            quota: bytes.get_u64_le(),
            key: bytes.get_u64_le(),
            client: ClientKey::from_bits(bytes.get_u128_le()),
        }
    }

    /// Decides by the counters of this process, if one of `quotas` has the rule. Returns no decision either if they were
    /// handed over to a third process.
    pub(crate) fn decide<'q>(
        self,
        store: &QuotaStore,
        mut quotas: impl Iterator<Item = &'q Quota>,
    ) -> DecisionReply {
        let quota = quotas.find(|quota| quota.id == self.quota)?;
        quota
            .take_unless_handed_over(store, self.client, self.key, Instant::now())
            .ok()
    }
}

/// Appends a reply to `buffer`.
pub(crate) fn encode_reply(reply: DecisionReply, buffer: &mut Vec<u8>) {
    let no_status = QuotaStatus {
        remaining: 0,
        reset: 0,
    };
    let (kind, status, time) = match reply {
        None => (UNKNOWN_RULE, no_status, 0),
        Some(QuotaDecision::Passed(status)) => (PASSED, status, 0),
        Some(QuotaDecision::Delayed(status, delay)) => (DELAYED, status, nanoseconds(delay)),
        Some(QuotaDecision::Rejected(status, retry_after)) => (REJECTED, status, retry_after),
    };
    buffer.put_u8(kind);
    buffer.put_u32_le(status.remaining);
    buffer.put_u64_le(status.reset);
    buffer.put_u64_le(time);
}

/// Parses a reply. Returns no decision if its kind is unknown.
pub(crate) fn decode_reply(bytes: [u8; REPLY_BYTES]) -> DecisionReply {
    let mut bytes = &bytes[..];
    let kind = bytes.get_u8();
    let status = QuotaStatus {
        remaining: bytes.get_u32_le(),
        reset: bytes.get_u64_le(),
    };
    let time = bytes.get_u64_le();
    match kind {
        PASSED => Some(QuotaDecision::Passed(status)),
        DELAYED => Some(QuotaDecision::Delayed(status, Duration::from_nanos(time))),
        REJECTED => Some(QuotaDecision::Rejected(status, time)),
        _ => None,
    }
}
