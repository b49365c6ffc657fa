//! Security events, a stream of their own: `target: "audit"`. Who did what from where; never a
//! password or a token. What operators do by `auth-api user …` is on the standard error of that.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::domain::login::Login;
use crate::domain::session::Origin;
use crate::domain::user::UserId;
use crate::visit;

/// Where a request came from, and what it is called in all logs.
#[derive(Debug, Clone)]
pub(crate) struct Visitor {
    request_id: String,
    pub(crate) origin: Origin,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Registered,
    LoggedIn,
    LoginFailed,
    LockedOut,
    LoggedOut,
    AllSessionsEnded,
    SessionEnded,
    RefreshTokenReused,
    PasswordChanged,
    Deleted,
    /// An operator gave it.
    PasswordSet,
    Disabled,
    Enabled,
}

/// Whom it happened to, as far as that is known.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Subject<'s> {
    pub(crate) user: Option<UserId>,
    pub(crate) login: Option<&'s str>,
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

impl Visitor {
    pub(crate) fn record<'s>(&self, event: Event, subject: impl Into<Subject<'s>>) {
        let subject = subject.into();
        tracing::info!(
            target: "audit",
            event = event.name(),
            user = subject.user.map(|user| user.0),
            login = subject.login,
            client = self.origin.address,
            user_agent = self.origin.user_agent,
            request_id = self.request_id,
            "audit"
        );
    }
}

/// Records what an operator did to an account on this machine, as the user that its system knows.
pub(crate) fn record_operator(event: Event, subject: Subject<'_>) {
    tracing::info!(
        target: "audit",
        event = event.name(),
        user = subject.user.map(|user| user.0),
        login = subject.login,
        operator = rustix::process::getuid().as_raw(),
        "audit"
    );
}

impl Event {
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

impl<S: Sync> FromRequestParts<S> for Visitor {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self {
            request_id: visit::request_id(&parts.headers).to_owned(),
            origin: visit::origin(&parts.headers),
        })
    }
}
