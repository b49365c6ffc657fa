//! `POST /api/login`: verifies a password and creates a session.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::Utc;

use crate::authentication::{Credentials, Verified};
use crate::domain::principal::{Principal, SessionId};
use crate::domain::refresh_token::RefreshToken;
use crate::domain::session::NewSession;
use crate::domain::user::Account;
use crate::hashing::Rehash;
use crate::http::credentials;
use crate::http::error::ApiError;
use crate::http::openapi::Operation;
use crate::http::token_response::TokenResponse;
use crate::state::AppState;
use crate::telemetry::audit::{AuditEvent, Subject};
use crate::telemetry::request_info::RequestInfo;

/// Attempts of a login whose account changes meanwhile. A second one suffices if the change was a
/// concurrent login that rehashed the password.
const MAX_ATTEMPTS: usize = 2;

pub(crate) fn operation() -> Operation {
    Operation::new(
        "Log in",
        "Creates a session. Send the access token as `Authorization: Bearer …`; `/api/refresh` exchanges \
         the refresh token for new tokens.",
    )
    .request_body::<Credentials>()
    .response(StatusCode::OK, "Logged in", &TokenResponse::example())
    .errors(credentials::possible_errors())
}

pub(crate) async fn handle(
    State(state): State<AppState>,
    request: RequestInfo,
    credentials: Credentials,
) -> Result<Json<TokenResponse>, ApiError> {
    let result = log_in(&state, &request, &credentials).await;
    let outcome = match &result {
        Ok(_) => "ok",
        Err(ApiError::InvalidCredentials) => "invalid",
        Err(ApiError::LockedOut(_)) => "locked_out",
        Err(ApiError::QueueFull(_)) => "queue_full",
        Err(_) => "unavailable",
    };
    state.metrics.logins.with_label_values(&[outcome]).inc();
    result
}

async fn log_in(
    state: &AppState,
    request: &RequestInfo,
    credentials: &Credentials,
) -> Result<Json<TokenResponse>, ApiError> {
    for _ in 0..MAX_ATTEMPTS {
        let verified = credentials.authenticate(state, request, Rehash::IfOutdated);
        if let Some(account) = replace_outdated_hash(state, request, verified.await?).await? {
            let session = create_session(state.clone(), request.clone(), account);
            if let Some(response) = state.lifecycle.complete(session).await? {
                return Ok(response);
            }
        }
    }
    Err(ApiError::InvalidCredentials)
}

/// Creates a session. Returns `None` if the account has changed since it was read.
async fn create_session(
    state: AppState,
    request: RequestInfo,
    account: Account,
) -> Result<Option<Json<TokenResponse>>, ApiError> {
    let now = Utc::now();
    let principal = Principal {
        user: account.id,
        session: SessionId::random(),
    };
    let refresh_token = RefreshToken::random(principal);
    let auth_time = account.standing.cutoff.next_auth_time(now);
    let session = NewSession {
        principal,
        refresh_hash: refresh_token.hash(),
        refresh_generation: refresh_token.generation(),
        created_at: now,
        auth_time,
        policy: state.session_policy,
        client: request.client.clone(),
    };
    if let Err(error) = state.sessions.create(&session).await {
        // The store may have created it all the same, and lost the response. The client, which never gets its
        // tokens, does not wait for its end.
        let sessions = state.sessions.clone();
        let end = async move { sessions.end(principal).await };
        drop(state.lifecycle.start(end));
        return Err(error.into());
    }
    // A concurrent password change, deletion or disabling may have ended the sessions of the account
    // before this one was created.
    let recorded = state.users.record_login(&account, auth_time).await;
    if !matches!(recorded, Ok(true)) {
        // The client never gets its tokens.
        state.sessions.end(principal).await?;
    }
    if !recorded? {
        return Ok(None);
    }
    let subject = Subject::Account(account.id, &account.login);
    let recorded = state.audit.record(AuditEvent::LoggedIn, subject, &request);
    if let Err(unrecorded) = recorded.await {
        state.sessions.end(principal).await?;
        return Err(unrecorded.into());
    }
    state.metrics.sessions_created.inc();
    let response = TokenResponse::issue(&state, &account.login, &refresh_token, now);
    Ok(Some(response))
}

/// Hashes a password whose stored hash is outdated anew, unless the queue is full: then a later login does. Returns `None` if
/// the stored hash was replaced concurrently.
async fn replace_outdated_hash(
    state: &AppState,
    request: &RequestInfo,
    Verified { account, outdated }: Verified,
) -> Result<Option<Account>, ApiError> {
    let Some(password) = outdated else {
        return Ok(Some(account));
    };
    let hasher = state.hasher.for_client(&request.client);
    let Ok(hash) = hasher.hash(&password).await else {
        return Ok(Some(account));
    };
    let is_replaced = state
        .users
        .replace_hash(account.id, &account.hash, &hash)
        .await?;
    Ok(is_replaced.then_some(Account { hash, ..account }))
}
