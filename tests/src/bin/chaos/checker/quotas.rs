//! Quotas: no span of time lets more requests through than the quota.

use std::time::Duration;

use crate::history::{Operation, Outcome, Span, Violation};

/// Limit of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quota {
    /// Requests that may pass at once.
    pub(crate) burst: usize,
    /// Duration in which `per_duration` requests become free again.
    pub(crate) duration: Duration,
    pub(crate) kind: QuotaKind,
}

/// How requests become free again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QuotaKind {
    /// All that passed within the last `duration` count.
    SlidingWindow,
    /// `per_duration` tokens come back in each `duration`, evenly.
    TokenBucket { per_duration: u32 },
}

impl Quota {
    /// Returns how many requests may pass within `span`.
    fn allowed(self, span: Duration) -> usize {
        match self.kind {
            QuotaKind::SlidingWindow => {
                let windows = span.as_nanos() / self.duration.as_nanos();
                self.burst * (usize::try_from(windows).unwrap_or(usize::MAX - 1) + 1)
            }
            QuotaKind::TokenBucket { per_duration } => {
                let refilled =
                    span.as_secs_f64() / self.duration.as_secs_f64() * f64::from(per_duration);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a small positive number"
                )]
                let refilled = refilled.ceil() as usize;
                self.burst + refilled
            }
        }
    }
}

/// Returns a violation for the first span of one window or less in which more requests of one key passed than the
/// quota allows. A request was counted between its begin and its end, so only requests that lie wholly within a span
/// count for it. Requests that passed within `losses`, spans of failovers of Redis, may have been forgotten.
pub(crate) fn check(operations: &[Operation], quota: Quota, losses: &[Span]) -> Option<Violation> {
    let is_lost = |operation: &Operation| losses.iter().any(|loss| loss.overlaps(operation.span()));
    let mut passed: Vec<_> = operations
        .iter()
        .filter(|operation| operation.outcome == Outcome::Done && !is_lost(operation))
        .map(Operation::span)
        .collect();
    passed.sort_by_key(|span| span.to);
    passed.iter().find_map(|first| {
        let mut count = 0;
        passed
            .iter()
            .filter(|span| span.from >= first.from)
            .take_while(|span| span.to.saturating_sub(first.from) < quota.duration)
            .find_map(|last| {
                count += 1;
                let span = last.to.saturating_sub(first.from);
                (count > quota.allowed(span)).then(|| Violation {
                    at: last.to,
                    text: format!(
                        "quota exceeded: {count} requests passed within {span:?} of {:.4} s, {} are allowed by {quota:?}",
                        first.from.as_secs_f64(),
                        quota.allowed(span)
                    ),
                })
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Action, GatewayId, Time};

    const WINDOW: Quota = Quota {
        burst: 3,
        duration: Duration::from_secs(10),
        kind: QuotaKind::SlidingWindow,
    };
    const BUCKET: Quota = Quota {
        kind: QuotaKind::TokenBucket { per_duration: 10 },
        ..WINDOW
    };

    fn passed(spans: &[(u64, u64)]) -> Vec<Operation> {
        spans
            .iter()
            .map(|&(began, ended)| Operation {
                gateway: GatewayId(0),
                began: Time::from_secs(began),
                ended: Time::from_secs(ended),
                action: Action::TakeQuota,
                outcome: Outcome::Done,
            })
            .collect()
    }

    #[test]
    fn a_quota_that_is_used_up_is_not_exceeded() {
        let requests = passed(&[(0, 1), (0, 1), (8, 9), (10, 11), (11, 12)]);
        assert_eq!(check(&requests, WINDOW, &[]), None);
    }

    #[test]
    fn one_request_more_than_a_window_allows_is_found() {
        let requests = passed(&[(0, 1), (0, 1), (8, 9), (8, 9)]);
        let violation = check(&requests, WINDOW, &[]).expect("it is exceeded");
        assert_eq!(violation.at, Time::from_secs(9));
    }

    #[test]
    fn requests_that_may_have_been_counted_in_another_window_are_not() {
        let requests = passed(&[(0, 1), (0, 1), (8, 9), (8, 10)]);
        assert_eq!(check(&requests, WINDOW, &[]), None);
    }

    #[test]
    fn a_bucket_allows_its_burst_and_what_has_been_refilled() {
        let requests = passed(&[(0, 0), (0, 0), (0, 0), (1, 1), (2, 2)]);
        assert_eq!(check(&requests, BUCKET, &[]), None);
        let requests = passed(&[(0, 0), (0, 0), (0, 0), (1, 1), (1, 1)]);
        assert!(check(&requests, BUCKET, &[]).is_some());
    }

    #[test]
    fn a_failover_may_forget_requests_of_its_last_instants() {
        let requests = passed(&[(0, 1), (2, 3), (8, 9), (8, 9)]);
        let (from, to) = (Time::from_secs(2), Time::from_secs(4));
        assert_eq!(check(&requests, WINDOW, &[Span { from, to }]), None);
        assert!(check(&requests, WINDOW, &[]).is_some());
    }
}
