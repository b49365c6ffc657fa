//! Retry rules: which failed attempts may be followed by another one, and after what delay.
//!
//! Invariant: a request that an endpoint may have processed is repeated only if its method is idempotent
//! (RFC 9110, section 9.2.2) and its body is still buffered. One that never reached an endpoint is
//! repeated whatever its method.

mod budget;

use std::time::Duration;

use http::{Method, StatusCode};

use crate::config::RetrySettings;
pub(crate) use budget::RetryBudget;

/// Failure of an attempt, by what the endpoint may have done with the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttemptFailure {
    /// No connection could be established: the endpoint has not received the request.
    NotSent,
    /// The connection broke, the endpoint timed out, or it responded with 502, 503 without `Retry-After`, or
    /// 504.
    MaybeProcessed,
}

/// Returns true if repeating a request after `failure` cannot apply it twice.
pub(crate) fn is_safe(failure: AttemptFailure, method: &Method) -> bool {
    match failure {
        AttemptFailure::NotSent => true,
        AttemptFailure::MaybeProcessed => is_idempotent(method),
    }
}

/// Returns true for the idempotent methods that the gateway forwards (RFC 9110, section 9.2.2).
fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::PUT | Method::DELETE | Method::OPTIONS
    )
}

/// Returns true for statuses of a temporary failure, after which another attempt may succeed.
pub(crate) fn is_temporary(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}

/// Returns the delay after `attempts` attempts, zero before the first one.
pub(crate) fn delay_after(settings: Option<&RetrySettings>, attempts: u32) -> Duration {
    let (Some(settings), Some(retry)) = (settings, attempts.checked_sub(1)) else {
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
    fn only_a_request_that_is_safe_to_repeat_is_retried() {
        assert!(is_safe(AttemptFailure::NotSent, &Method::POST));
        assert!(!is_safe(AttemptFailure::MaybeProcessed, &Method::POST));
        assert!(is_safe(AttemptFailure::MaybeProcessed, &Method::GET));
    }
}
