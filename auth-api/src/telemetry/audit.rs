//! Audit log: security events, under `target: "audit"` whatever the log level is.
//!
//! An event contains the account, the action and the client, and never a password or a token. A login
//! without an account is recorded as a pseudonym, since it may be a password. Events
//! that an operator causes with `auth-api user …` go to the standard error of that command.

use crate::domain::login::Login;
use crate::domain::login_pseudonym::PseudonymKey;
use crate::domain::secret_keys::SecretKeys;
use crate::domain::user::{Account, UserId};
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

/// Account or login that an event concerns.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Subject<'s> {
    /// No single account, or a login that no account can have.
    None,
    Account(UserId, &'s Login),
    /// Account whose login was not read.
    User(UserId),
    /// Login without an account. It may be a password in the wrong field, so the log has its pseudonym.
    UnknownLogin(&'s Login),
}

impl<'s> Subject<'s> {
    /// Returns the subject of an attempt to log in as `login`.
    pub(crate) fn login(login: &'s Login, account: Option<&'s Account>) -> Self {
        account.map_or(Self::UnknownLogin(login), |account| {
            Self::Account(account.id, &account.login)
        })
    }

    fn user(self) -> Option<i64> {
        match self {
            Self::Account(user, _) | Self::User(user) => Some(user.0),
            Self::None | Self::UnknownLogin(_) => None,
        }
    }

    fn known_login(self) -> Option<&'s str> {
        match self {
            Self::Account(_, login) => Some(login.as_str()),
            Self::None | Self::User(_) | Self::UnknownLogin(_) => None,
        }
    }
}

impl From<UserId> for Subject<'_> {
    fn from(user: UserId) -> Self {
        Self::User(user)
    }
}

/// Audit log of a replica.
#[derive(Debug)]
pub(crate) struct AuditLog {
    unknown_logins: PseudonymKey,
}

impl AuditLog {
    pub(crate) fn new(keys: &SecretKeys) -> Self {
        Self {
            unknown_logins: PseudonymKey::new(keys),
        }
    }

    /// Records an event that a client's request caused.
    pub(crate) fn record<'s>(
        &self,
        event: AuditEvent,
        subject: impl Into<Subject<'s>>,
        request: &RequestInfo,
    ) {
        let subject = subject.into();
        let unknown_login = match subject {
            Subject::UnknownLogin(login) => Some(self.unknown_logins.pseudonym(login)),
            _ => None,
        };
        tracing::info!(
            target: "audit",
            event = event.name(),
            user = subject.user(),
            login = subject.known_login(),
            unknown_login,
            client = request.client.address,
            user_agent = request.client.user_agent,
            request_id = request.request_id,
            "audit"
        );
    }
}

/// Records an event that an operator caused. The operator is identified by the process's user id.
pub(crate) fn record_operator(event: AuditEvent, subject: Subject<'_>) {
    tracing::info!(
        target: "audit",
        event = event.name(),
        user = subject.user(),
        login = subject.known_login(),
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
