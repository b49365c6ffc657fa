//! Limits of sessions that both stores enforce.

use std::time::Duration;

/// Shortest time between two updates of a session's time of last use.
pub(super) const LAST_USED_INTERVAL: Duration = Duration::from_mins(1);
/// Maximum number of sessions of one user. A login beyond it ends the other session that would expire first.
pub(super) const MAX_SESSIONS_PER_USER: u32 = 1000;
/// Unused successors of one refresh token, other than the last one, that are accepted: responses
/// that a client lost, or receives late.
pub(super) const MAX_SIBLINGS: usize = 3;
/// Last rotations that a store may have lost in a failover.
pub(super) const MAX_LOST_ROTATIONS: u32 = 4;
