//! Verification of passwords.
//!
//! A wrong password, an unknown login, a disabled account and one whose stored hash cannot be verified are
//! indistinguishable by response and by response time.

pub(crate) mod oauth_client;

use crate::domain::login::{Login, PresentedLogin};
use crate::domain::password::{NewPassword, Password};
use crate::domain::principal::Principal;
use crate::domain::user::{Account, AccountStatus};
use crate::hashing::{Hasher, Match, QueueFull, Rehash};
use crate::state::AppState;
use crate::store::unavailable::Unavailable;
use crate::telemetry::audit::{AuditEvent, AuditUnavailable, Subject};
use crate::telemetry::request_info::RequestInfo;
use crate::throttle::{LockedOut, LoginOutcome, ThrottleScope};

/// Login and password to be verified. The rules for new passwords do not apply: a password that
/// violates them does not match.
#[derive(Debug)]
pub(crate) struct Credentials {
    /// `None` if no account can have the login that was sent.
    pub(crate) login: Option<PresentedLogin>,
    pub(crate) password: Password,
}

/// Account whose password was verified.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) account: Account,
    /// The password, if its hash should be replaced.
    pub(crate) outdated: Option<NewPassword>,
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
    /// Returns the account that the credentials belong to. Failures are counted for the login.
    ///
    /// # Errors
    /// Returns an error if they do not belong to an active account, if the login is locked after too
    /// many failures, or if they could not be verified.
    pub(crate) async fn authenticate(
        &self,
        state: &AppState,
        request: &RequestInfo,
        rehash: Rehash,
    ) -> Result<Verified, AuthenticationError> {
        self.authenticate_within(None, state, request, rehash).await
    }

    /// Like [`Self::authenticate`]. If the account is that of `session`, which is active, failures are
    /// counted for the session.
    pub(crate) async fn authenticate_within(
        &self,
        session: Option<Principal>,
        state: &AppState,
        request: &RequestInfo,
        rehash: Rehash,
    ) -> Result<Verified, AuthenticationError> {
        let Some(login) = &self.login else {
            let hasher = state.hasher.for_client(&request.client);
            hasher.check(&self.password, None, rehash).await?;
            state
                .audit
                .record(AuditEvent::LoginFailed, Subject::None, request)
                .await?;
            return Err(AuthenticationError::InvalidCredentials);
        };
        let account = state.users.find_by_login(login).await?;
        let own_session = session.filter(|session| {
            let user = account.as_ref().map(|account| account.id);
            user == Some(session.user)
        });
        let scope = match (own_session, &account) {
            (Some(principal), _) => ThrottleScope::Session(principal.session),
            // The login as it is stored: a database whose collation ignores case finds one account by many spellings.
            (None, Some(account)) => ThrottleScope::Login((&account.login).into()),
            (None, None) => ThrottleScope::Login(login.clone()),
        };
        let attempt = Attempt {
            login: login.clone(),
            account,
            scope,
        };
        attempt.verify(&self.password, state, request, rehash).await
    }
}

/// Verifies the password of the account of an active session, and counts failures for the session.
///
/// # Errors
/// Returns an error if `password` is not that of the account, if the session is locked after too many
/// failures, or if it could not be verified.
pub(crate) async fn verify_in_session(
    principal: Principal,
    login: &Login,
    password: &Password,
    state: &AppState,
    request: &RequestInfo,
) -> Result<Account, AuthenticationError> {
    let attempt = Attempt {
        login: login.into(),
        account: state.users.find(principal.user).await?,
        scope: ThrottleScope::Session(principal.session),
    };
    let verified = attempt.verify(password, state, request, Rehash::Never);
    Ok(verified.await?.account)
}

/// Verification of a password for an account that may not exist.
struct Attempt {
    login: PresentedLogin,
    account: Option<Account>,
    scope: ThrottleScope,
}

impl Attempt {
    async fn verify(
        self,
        password: &Password,
        state: &AppState,
        request: &RequestInfo,
        rehash: Rehash,
    ) -> Result<Verified, AuthenticationError> {
        if let Err(locked_out) = state.throttle.check(&self.scope).await? {
            self.record(AuditEvent::LockedOut, state, request).await?;
            return Err(AuthenticationError::LockedOut(locked_out));
        }
        let hasher = state.hasher.for_client(&request.client);
        // No password matches that of a disabled account.
        let is_active = |account: &&Account| account.standing.status == AccountStatus::Active;
        let account = self.account.as_ref().filter(is_active);
        warn_if_too_costly(account, &hasher);
        let hash = account.map(|account| &account.hash);
        let found = hasher.check(password, hash, rehash).await?;
        let result = self.conclude(found, state.clone(), request.clone());
        state.lifecycle.complete(result).await
    }

    /// Counts the outcome of a verification and records a failure in the audit log.
    async fn conclude(
        self,
        found: Option<Match>,
        state: AppState,
        request: RequestInfo,
    ) -> Result<Verified, AuthenticationError> {
        let outcome = match found {
            Some(_) => LoginOutcome::Success,
            None => LoginOutcome::Failure,
        };
        if let Err(locked_out) = state.throttle.record(&self.scope, outcome).await? {
            self.record(AuditEvent::LockedOut, &state, &request).await?;
            return Err(AuthenticationError::LockedOut(locked_out));
        }
        if found.is_none() {
            self.record(AuditEvent::LoginFailed, &state, &request)
                .await?;
        }
        let (account, found) = self
            .account
            .zip(found)
            .ok_or(AuthenticationError::InvalidCredentials)?;
        Ok(Verified {
            account,
            outdated: found.outdated,
        })
    }

    async fn record(
        &self,
        event: AuditEvent,
        state: &AppState,
        request: &RequestInfo,
    ) -> Result<(), AuditUnavailable> {
        let subject = Subject::login(&self.login, self.account.as_ref());
        state.audit.record(event, subject, request).await
    }
}

fn warn_if_too_costly(account: Option<&Account>, hasher: &Hasher) {
    let hash = account.and_then(|account| Some((account.id, account.hash.as_bcrypt()?.cost)));
    if let Some((user, cost)) = hash.filter(|(_, cost)| *cost > hasher.max_cost()) {
        tracing::warn!(
            user = user.0,
            cost,
            "stored password hash has a higher cost than BCRYPT_MAX_COST and matches no password: fix it with \
             `auth-api user set-password --id {}`, or raise BCRYPT_MAX_COST",
            user.0
        );
    }
}
