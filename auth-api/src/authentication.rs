//! Verification of a login and a password.
//!
//! A wrong password, an unknown login and a disabled account are indistinguishable by response and by
//! response time.

use crate::domain::login::Login;
use crate::domain::password::Password;
use crate::domain::user::{Account, AccountStatus};
use crate::hashing::{Hasher, QueueFull};
use crate::state::AppState;
use crate::store::unavailable::Unavailable;
use crate::telemetry::audit::{AuditEvent, AuditUnavailable, Subject};
use crate::telemetry::request_info::RequestInfo;
use crate::throttle::{LockedOut, LoginOutcome};

/// Login and password to be verified. The rules for new passwords do not apply: a password that
/// violates them does not match.
#[derive(Debug)]
pub(crate) struct Credentials {
    /// `None` if no account can have the login that was sent.
    pub(crate) login: Option<Login>,
    pub(crate) password: Password,
}

/// Reason credentials were not accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthenticationError {
    #[error("invalid credentials")]
    InvalidCredentials,
    #[error("too many failed logins")]
    LockedOut(LockedOut),
    #[error(transparent)]
    QueueFull(#[from] QueueFull),
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error(transparent)]
    AuditUnavailable(#[from] AuditUnavailable),
}

impl Credentials {
    /// Returns the account that the credentials belong to.
    ///
    /// # Errors
    /// Returns an error if they do not belong to an active account, if the login is locked after too
    /// many failures, or if they could not be verified.
    pub(crate) async fn authenticate(
        &self,
        state: &AppState,
        request: &RequestInfo,
    ) -> Result<Account, AuthenticationError> {
        let hasher = state.hasher.for_client(&request.client);
        let Some(login) = &self.login else {
            hasher.verify_dummy(&self.password).await?;
            state
                .audit
                .record(AuditEvent::LoginFailed, Subject::None, request)
                .await?;
            return Err(AuthenticationError::InvalidCredentials);
        };
        if let Err(locked_out) = state.throttle.check(login).await? {
            // Only for the audit log: without it the login counts as unknown.
            let account = state.users.find_by_login(login).await.ok().flatten();
            let subject = Subject::login(login, account.as_ref());
            state
                .audit
                .record(AuditEvent::LockedOut, subject, request)
                .await?;
            return Err(AuthenticationError::LockedOut(locked_out));
        }
        let verification = self.verify(state, &hasher, login).await?;
        let result = record_outcome(state.clone(), request.clone(), login.clone(), verification);
        state.lifecycle.complete(result).await
    }

    async fn verify(
        &self,
        state: &AppState,
        hasher: &Hasher,
        login: &Login,
    ) -> Result<Verification, AuthenticationError> {
        let Some(account) = state.users.find_by_login(login).await? else {
            hasher.verify_dummy(&self.password).await?;
            return Ok(Verification::UnknownLogin);
        };
        let matches = hasher.verify(&self.password, &account.hash).await?;
        if matches && account.standing.status == AccountStatus::Active {
            return Ok(Verification::Accepted(account));
        }
        hasher.equalize_time(&self.password, &account.hash).await;
        Ok(Verification::Rejected(account))
    }
}

/// Result of the verification of a password.
enum Verification {
    Accepted(Account),
    /// The password is wrong, or the account is disabled.
    Rejected(Account),
    UnknownLogin,
}

/// Counts the outcome of a verification and records a failure in the audit log.
async fn record_outcome(
    state: AppState,
    request: RequestInfo,
    login: Login,
    verification: Verification,
) -> Result<Account, AuthenticationError> {
    let (outcome, account) = match &verification {
        Verification::Accepted(account) => (LoginOutcome::Success, Some(account)),
        Verification::Rejected(account) => (LoginOutcome::Failure, Some(account)),
        Verification::UnknownLogin => (LoginOutcome::Failure, None),
    };
    let subject = Subject::login(&login, account);
    if let Err(locked_out) = state.throttle.record(&login, outcome).await? {
        state
            .audit
            .record(AuditEvent::LockedOut, subject, &request)
            .await?;
        return Err(AuthenticationError::LockedOut(locked_out));
    }
    match verification {
        Verification::Accepted(account) => Ok(account),
        Verification::Rejected(_) | Verification::UnknownLogin => {
            state
                .audit
                .record(AuditEvent::LoginFailed, subject, &request)
                .await?;
            Err(AuthenticationError::InvalidCredentials)
        }
    }
}
