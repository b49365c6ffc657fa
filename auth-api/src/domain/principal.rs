//! Identity behind a request: a user and one of the user's sessions.

pub(crate) use session_invalidation::SessionId;

use super::user::UserId;

/// User and session that a token was issued for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Principal {
    pub(crate) user: UserId,
    pub(crate) session: SessionId,
}
