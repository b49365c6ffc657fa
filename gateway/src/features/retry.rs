//! Trying again, where that is safe: a connection that could not be made, with another replica; a
//! broken connection or an answer of 502, 503 or 504 only for a method that may be repeated, with
//! a body that is still at hand.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};

use crate::config::Retry;

/// What a request adds to the budget, and what a retry takes out of it: a fifth of requests.
const EARNED: i64 = 1;
const COST: i64 = 5;
/// So that the first failures after a quiet time can be retried too.
const MOST_SAVED: i64 = 10 * COST;

/// Keeps retries from making an overload worse: they never exceed a fifth of the requests, but for
/// a few saved ones.
#[derive(Debug)]
pub(crate) struct Budget(AtomicI64);

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicI64::new(MOST_SAVED))
    }
}

impl Budget {
    /// A request came in.
    pub(crate) fn earn(&self) {
        if self.0.load(Ordering::Relaxed) < MOST_SAVED {
            self.0.fetch_add(EARNED, Ordering::Relaxed);
        }
    }

    /// Whether a retry is affordable; it is then paid for.
    pub(crate) fn spend(&self) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |saved| {
                (saved >= COST).then_some(saved - COST)
            })
            .is_ok()
    }
}

/// Why a try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The request never reached a replica.
    NoConnection,
    /// It may have: the connection broke, or a gateway behind us said so.
    Unanswered,
}

/// Whether a failed request may be tried again, its limit of attempts and the budget apart.
pub(crate) fn is_safe(failure: Failure, method: &Method) -> bool {
    match failure {
        Failure::NoConnection => true,
        Failure::Unanswered => is_idempotent(method),
    }
}

/// RFC 9110, section 9.2.2.
fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::PUT | Method::DELETE | Method::OPTIONS
    )
}

/// Whether an answer says that another try may go better.
pub(crate) fn is_temporary(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}

/// How long to wait before a try; the first is number 1 and waits for nothing.
pub(crate) fn wait_before(settings: Option<&Retry>, attempt: u32) -> Duration {
    let (Some(settings), Some(retry)) = (settings, attempt.checked_sub(2)) else {
        return Duration::ZERO;
    };
    let index = usize::try_from(retry).unwrap_or(usize::MAX);
    settings
        .wait
        .get(index)
        .or(settings.wait.last())
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_fifth_of_requests_at_most() {
        let budget = Budget::default();
        let saved = (0..100).filter(|_| budget.spend()).count();
        assert_eq!(saved, 10);
        let mut retries = 0;
        for _ in 0..1000 {
            budget.earn();
            retries += u32::from(budget.spend());
        }
        assert_eq!(retries, 200);
    }

    #[test]
    fn only_what_is_safe_is_repeated() {
        assert!(is_safe(Failure::NoConnection, &Method::POST));
        assert!(!is_safe(Failure::Unanswered, &Method::POST));
        assert!(is_safe(Failure::Unanswered, &Method::GET));
    }
}
