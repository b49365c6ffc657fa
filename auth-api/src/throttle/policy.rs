//! Limits of the throttle and the values that its stores have in common.

use std::time::Duration;

/// Failures within [`FAILURE_WINDOW`] after which the scope is locked.
pub(super) const MAX_FAILURES: u32 = 10;
/// Time from the first failure until the count starts again.
pub(crate) const FAILURE_WINDOW: Duration = Duration::from_mins(15);

/// SHA-256 of the scope, so that the store does not contain attempted logins in the clear.
pub(super) type ScopeKey = [u8; 32];

/// Outcome of a password verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoginOutcome {
    Success,
    Failure,
}
