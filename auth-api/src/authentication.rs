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
use crate::telemetry::audit::{self, AuditEvent, Subject};
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
            audit::record(AuditEvent::LoginFailed, Subject::default(), request);
            return Err(AuthenticationError::InvalidCredentials);
        };
        if let Err(locked_out) = state.throttle.check(login).await? {
            audit::record(AuditEvent::LockedOut, login, request);
            return Err(AuthenticationError::LockedOut(locked_out));
        }
        let account = self.verify(state, &hasher, login).await?;
        let result = record_outcome(state.clone(), request.clone(), login.clone(), account);
        state.lifecycle.complete(result).await
    }

    async fn verify(
        &self,
        state: &AppState,
        hasher: &Hasher,
        login: &Login,
    ) -> Result<Option<Account>, AuthenticationError> {
        let Some(account) = state.users.find_by_login(login).await? else {
            hasher.verify_dummy(&self.password).await?;
            return Ok(None);
        };
        let matches = hasher.verify(&self.password, &account.hash).await?;
        if matches && account.standing.status == AccountStatus::Active {
            return Ok(Some(account));
        }
        hasher.equalize_time(&self.password, &account.hash).await;
        Ok(None)
    }
}

/// Counts the outcome of a verification and records a failure in the audit log.
async fn record_outcome(
    state: AppState,
    request: RequestInfo,
    login: Login,
    account: Option<Account>,
) -> Result<Account, AuthenticationError> {
    let outcome = match account {
        Some(_) => LoginOutcome::Success,
        None => LoginOutcome::Failure,
    };
    if let Err(locked_out) = state.throttle.record(&login, outcome).await? {
        audit::record(AuditEvent::LockedOut, &login, &request);
        return Err(AuthenticationError::LockedOut(locked_out));
    }
    account.ok_or_else(|| {
        audit::record(AuditEvent::LoginFailed, &login, &request);
        AuthenticationError::InvalidCredentials
    })
}
