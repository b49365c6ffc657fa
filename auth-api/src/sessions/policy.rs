//! Limits of sessions that both stores enforce.

use std::time::Duration;

/// Time after a rotation in which a client that lost the response may retry with the used token.
pub(super) const GRACE_PERIOD: Duration = Duration::from_secs(10);
/// Shortest time between two updates of a session's time of last use.
pub(super) const LAST_USED_INTERVAL: Duration = Duration::from_mins(1);
/// Maximum number of sessions of one user. A login beyond it ends the session that would expire first.
pub(super) const MAX_SESSIONS_PER_USER: u32 = 1000;
