//! `POST /api/delete`: deletes an account and ends its sessions.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::authentication::Credentials;
use crate::domain::user::{Account, DeleteOutcome};
use crate::hashing::Rehash;
use crate::http::bearer::Authenticated;
use crate::http::credentials;
use crate::http::error::ApiError;
use crate::http::message_response::MessageResponse;
use crate::http::openapi::Operation;
use crate::state::AppState;
use crate::telemetry::audit::{AuditEvent, Subject};
use crate::telemetry::request_info::RequestInfo;

/// Attempts of a deletion whose account changes meanwhile. A second one suffices if the change was a
/// concurrent login that rehashed the password.
const MAX_ATTEMPTS: usize = 2;

const SUCCESS: MessageResponse = MessageResponse::new("User deleted successfully");

pub(crate) fn operation() -> Operation {
    Operation::new(
        "Delete the account",
        "Deletes the account and ends all its sessions. With the access token of one of them, which is optional, \
         failed attempts are counted for that session, and a lock of the login does not apply.",
    )
    .optional_bearer()
    .request_body::<Credentials>()
    .response(StatusCode::OK, "Deleted", &SUCCESS)
    .errors(credentials::possible_errors())
    .errors([ApiError::MultipleAuthorizationHeaders])
}

pub(crate) async fn handle(
    State(state): State<AppState>,
    request: RequestInfo,
    session: Result<Authenticated, ApiError>,
    credentials: Credentials,
) -> Result<Json<MessageResponse>, ApiError> {
    let session = match session {
        Ok(session) => Some(session.principal),
        // It is not known which of them the client means.
        Err(error @ ApiError::MultipleAuthorizationHeaders) => return Err(error),
        // A token that is not valid is as good as none: the password decides.
        Err(_) => None,
    };
    for _ in 0..MAX_ATTEMPTS {
        let verified = credentials
            .authenticate_within(session, &state, &request, Rehash::Never)
            .await?;
        let deletion = delete(state.clone(), request.clone(), verified.account);
        if state.lifecycle.complete(deletion).await? == DeleteOutcome::Deleted {
            return Ok(Json(SUCCESS));
        }
    }
    Err(ApiError::InvalidCredentials)
}

/// Ends the sessions first: if their store is unavailable, nothing has been changed. Ends them again
/// after the deletion, for a login in between.
///
/// Deletes nothing if the password has been changed since it was verified: ending the sessions may take a
/// second, and a change that is acknowledged meanwhile must hold.
async fn delete(
    state: AppState,
    request: RequestInfo,
    account: Account,
) -> Result<DeleteOutcome, ApiError> {
    let sessions_ended = &state.metrics.sessions_ended;
    sessions_ended.inc_by(state.sessions.end_all(account.id).await?);
    let deletion = state.users.delete_verified(account.id, &account.hash);
    if deletion.await? == DeleteOutcome::NotFound {
        return Ok(DeleteOutcome::NotFound);
    }
    let subject = Subject::Account(account.id, &account.login);
    let recorded = state.audit.record(AuditEvent::Deleted, subject, &request);
    let recorded = recorded.await;
    sessions_ended.inc_by(state.sessions.end_all(account.id).await?);
    recorded?;
    Ok(DeleteOutcome::Deleted)
}
