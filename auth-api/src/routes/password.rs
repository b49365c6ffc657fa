//! `POST /api/password`: changes the password and ends every other session.

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use chrono::Utc;
use serde_json::{Value, json};

use crate::authentication::verify_in_session;
use crate::domain::login::Login;
use crate::domain::password::{InvalidPassword, NewPassword, Password};
use crate::domain::password_hash::PasswordHash;
use crate::domain::principal::Principal;
use crate::domain::problem::Problem;
use crate::domain::user::Account;
use crate::http::bearer::{self, Authenticated};
use crate::http::credentials;
use crate::http::error::ApiError;
use crate::http::json_body::{JsonObject, both};
use crate::http::message_response::MessageResponse;
use crate::http::openapi::{Operation, RequestBody};
use crate::state::AppState;
use crate::telemetry::audit::AuditEvent;
use crate::telemetry::request_info::RequestInfo;

/// Current and new password.
#[derive(Debug)]
pub(crate) struct PasswordChange {
    current: Password,
    new: NewPassword,
}

impl<S: Sync> FromRequest<S> for PasswordChange {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = JsonObject::from_request(request, state).await?;
        let current = body.string("current_password").map(Password::presented);
        let new = body
            .string("new_password")
            .and_then(|text| NewPassword::new(text).map_err(invalid_new_password));
        let (current, new) = both(current, new)?;
        Ok(Self { current, new })
    }
}

const SUCCESS: MessageResponse = MessageResponse::new("Password changed");

pub(crate) fn operation() -> Operation {
    Operation::new(
        "Change the password",
        "Ends every other session; this one and its tokens stay valid. The new password must not be a common password or the login.",
    )
    .bearer()
    .request_body::<PasswordChange>()
    .response(StatusCode::OK, "Changed", &SUCCESS)
    .errors(bearer::possible_errors())
    .errors(credentials::possible_errors())
}

impl RequestBody for PasswordChange {
    fn schema() -> Value {
        json!({
            "type": "object",
            "required": ["current_password", "new_password"],
            "properties": {
                "current_password": {"type": "string"},
                "new_password": NewPassword::schema(),
            },
        })
    }

    fn example() -> Value {
        json!({"current_password": "securepassword123", "new_password": "a better password"})
    }
}

pub(crate) async fn handle(
    State(state): State<AppState>,
    request: RequestInfo,
    Authenticated { principal, account }: Authenticated,
    PasswordChange { current, new }: PasswordChange,
) -> Result<Json<MessageResponse>, ApiError> {
    let login = Login::from_stored(account.profile.login);
    let new = new
        .distinct_from(&login)
        .map_err(|reason| ApiError::InvalidBody(vec![invalid_new_password(reason)]))?;
    let verify = || verify_in_session(principal, &login, &current, &state, &request);
    let account = verify().await?;
    let hasher = state.hasher.for_client(&request.client);
    let hash = hasher.hash(&new).await?;
    let attempt = |account| {
        let (state, request) = (state.clone(), request.clone());
        change(state, request, principal, account, hash.clone())
    };
    let mut outcome = state.lifecycle.complete(attempt(account)).await?;
    if outcome == ChangeOutcome::HashReplaced {
        // The cause may be a login that rehashed the current password.
        let account = verify().await?;
        outcome = state.lifecycle.complete(attempt(account)).await?;
    }
    match outcome {
        ChangeOutcome::Changed => Ok(Json(SUCCESS)),
        ChangeOutcome::HashReplaced => Err(ApiError::InvalidCredentials),
    }
}

/// Outcome of an attempt to change a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChangeOutcome {
    Changed,
    /// The hash is no longer the one that the current password was verified with.
    HashReplaced,
}

/// Ends the other sessions first: if their store is unavailable, nothing has been changed. Ends them
/// again after the change, for a login with the old password in between.
///
/// The change also ends them by the account, which the session of the request outlives, because the
/// password has just been verified in it. Its older access tokens stay valid with it.
async fn change(
    state: AppState,
    request: RequestInfo,
    principal: Principal,
    account: Account,
    hash: PasswordHash,
) -> Result<ChangeOutcome, ApiError> {
    let sessions_ended = &state.metrics.sessions_ended;
    let now = Utc::now();
    let auth_time = account.standing.cutoff.next_auth_time(now);
    sessions_ended.inc_by(state.sessions.end_others(principal, auth_time).await?);
    let cutoff = state
        .users
        .change_password(account.id, &account.hash, &hash, auth_time.latest_cutoff())
        .await?;
    let Some(cutoff) = cutoff else {
        return Ok(ChangeOutcome::HashReplaced);
    };
    let event = AuditEvent::PasswordChanged;
    let recorded = state.audit.record(event, principal.user, &request).await;
    // Later than a concurrent login, up to which the account has ended sessions.
    let last_auth_time = auth_time.max(cutoff.kept_auth_time());
    match state.sessions.end_others(principal, last_auth_time).await {
        Ok(ended) => sessions_ended.inc_by(ended),
        // The account refuses the other sessions, and this one has its time already.
        Err(_) if last_auth_time == auth_time => {}
        Err(error) => return Err(error.into()),
    }
    recorded?;
    Ok(ChangeOutcome::Changed)
}

fn invalid_new_password(reason: InvalidPassword) -> Problem {
    Problem::invalid_value("new_password", reason)
}
