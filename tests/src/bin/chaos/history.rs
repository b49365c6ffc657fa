//! History of a run: what each client did, when it began and ended, and which faults there were. Pure data, which
//! the checkers read.

use std::fmt;
use std::time::Duration;

/// Time since the start of the run, on the monotonic clock of the clients.
pub(crate) type Time = Duration;

/// Password of an account. No other account and no later change has the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PasswordId(pub(crate) u32);

/// Session of an account, in the order in which its clients received them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SessionId(pub(crate) u32);

/// One of the two gateways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct GatewayId(pub(crate) usize);

impl GatewayId {
    pub(crate) const ALL: [Self; 2] = [Self(0), Self(1)];
}

/// Program that decides whether a token is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// auth-api, at `/api/profile`.
    AuthApi,
    /// The gateway, on a path with the feature `auth`.
    Gateway,
}

/// Request of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Register {
        password: PasswordId,
    },
    LogIn {
        password: PasswordId,
    },
    ChangePassword {
        session: SessionId,
        from: PasswordId,
        to: PasswordId,
    },
    Delete {
        password: PasswordId,
    },
    Refresh {
        session: SessionId,
    },
    UseToken {
        session: SessionId,
        decision: Decision,
    },
    LogOut {
        session: SessionId,
    },
    LogOutEverywhere {
        session: SessionId,
    },
    /// Request on a path with a quota.
    TakeQuota,
}

impl Action {
    /// Returns the session whose token the request presents, if it needs one.
    pub(crate) fn session(self) -> Option<SessionId> {
        match self {
            Self::ChangePassword { session, .. }
            | Self::Refresh { session }
            | Self::UseToken { session, .. }
            | Self::LogOut { session }
            | Self::LogOutEverywhere { session } => Some(session),
            Self::Register { .. } | Self::LogIn { .. } | Self::Delete { .. } | Self::TakeQuota => {
                None
            }
        }
    }
}

/// What the response says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// 2xx.
    Done,
    /// A login succeeded and created a session.
    LoggedIn(SessionId),
    /// 409: the login is taken.
    LoginTaken,
    /// 401: login and password do not fit.
    InvalidCredentials,
    /// 401 or 404: the token, its session or its account is not valid.
    InvalidToken,
    /// 400: the session of a logout had already ended.
    AlreadyLoggedOut,
    /// 429: a quota, or a lock of the login.
    Throttled,
    /// 502, 503 or 504: the request may have been carried out, now or later.
    Unavailable(u16),
    /// No complete response: it may have been carried out, now or later.
    NoResponse(String),
    /// A response that no request of the test may receive.
    Unexpected(String),
}

impl Outcome {
    /// Returns true if the client cannot tell whether the request was carried out.
    pub(crate) fn is_unknown(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_) | Self::NoResponse(_) | Self::Unexpected(_)
        )
    }
}

/// A request with its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) gateway: GatewayId,
    pub(crate) began: Time,
    pub(crate) ended: Time,
    pub(crate) action: Action,
    pub(crate) outcome: Outcome,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            gateway: GatewayId(gateway),
            began,
            ended,
            action,
            outcome,
        } = self;
        let (began, ended) = (began.as_secs_f64(), ended.as_secs_f64());
        write!(
            f,
            "{began:10.4} {ended:10.4} gateway{} {action:?}: {outcome:?}",
            gateway + 1
        )
    }
}

/// Span of time, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) from: Time,
    pub(crate) to: Time,
}

impl Span {
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.from <= other.to && other.from <= self.to
    }
}

impl Operation {
    pub(crate) fn span(&self) -> Span {
        Span {
            from: self.began,
            to: self.ended,
        }
    }
}

/// A promise that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) at: Time,
    pub(crate) text: String,
}
