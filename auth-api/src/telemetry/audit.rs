//! Audit log: security events, under `target: "audit"` whatever the log level is.
//!
//! An event contains the account, the action and the client, and never a password or a token. Events
//! that an operator causes with `auth-api user …` go to the standard error of that command.

use crate::domain::login::Login;
use crate::domain::user::UserId;
use crate::telemetry::request_info::RequestInfo;

/// Security event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuditEvent {
    Registered,
    LoggedIn,
    LoginFailed,
    LockedOut,
    LoggedOut,
    AllSessionsEnded,
    SessionEnded,
    RefreshTokenReused,
    /// The owner changed the password.
    PasswordChanged,
    Deleted,
    /// An operator set the password.
    PasswordSet,
    Disabled,
    Enabled,
}

/// Account that an event concerns, as far as it is known.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Subject<'s> {
    user: Option<UserId>,
    login: Option<&'s str>,
}

impl<'s> Subject<'s> {
    pub(crate) fn account(user: UserId, login: &'s Login) -> Self {
        Self {
            user: Some(user),
            login: Some(login.as_str()),
        }
    }
}

impl<'s> From<&'s Login> for Subject<'s> {
    fn from(login: &'s Login) -> Self {
        Self {
            user: None,
            login: Some(login.as_str()),
        }
    }
}

impl From<UserId> for Subject<'_> {
    fn from(user: UserId) -> Self {
        Self {
            user: Some(user),
            login: None,
        }
    }
}

/// Records an event that a client's request caused.
pub(crate) fn record<'s>(
    event: AuditEvent,
    subject: impl Into<Subject<'s>>,
    request: &RequestInfo,
) {
    let subject = subject.into();
    tracing::info!(
        target: "audit",
        event = event.name(),
        user = subject.user.map(|user| user.0),
        login = subject.login,
        client = request.client.address,
        user_agent = request.client.user_agent,
        request_id = request.request_id,
        "audit"
    );
}

/// Records an event that an operator caused. The operator is identified by the process's user id.
pub(crate) fn record_operator(event: AuditEvent, subject: Subject<'_>) {
    tracing::info!(
        target: "audit",
        event = event.name(),
        user = subject.user.map(|user| user.0),
        login = subject.login,
        operator = rustix::process::getuid().as_raw(),
        "audit"
    );
}

impl AuditEvent {
    fn name(self) -> &'static str {
        match self {
            Self::Registered => "register",
            Self::LoggedIn => "login",
            Self::LoginFailed => "login_failed",
            Self::LockedOut => "locked_out",
            Self::LoggedOut => "logout",
            Self::AllSessionsEnded => "logout_all",
            Self::SessionEnded => "session_ended",
            Self::RefreshTokenReused => "refresh_token_reused",
            Self::PasswordChanged => "password_changed",
            Self::Deleted => "delete",
            Self::PasswordSet => "password_set",
            Self::Disabled => "disabled",
            Self::Enabled => "enabled",
        }
    }
}
