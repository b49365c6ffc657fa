//! `DELETE /api/sessions/{id}`: ends one session of the user.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;

use crate::domain::principal::{Principal, SessionId};
use crate::domain::session::EndOutcome;
use crate::http::bearer::{self, Authenticated};
use crate::http::error::ApiError;
use crate::http::message_response::MessageResponse;
use crate::http::openapi::Operation;
use crate::state::AppState;
use crate::telemetry::audit::{self, AuditEvent};
use crate::telemetry::request_info::RequestInfo;

const SUCCESS: MessageResponse = MessageResponse::new("Session ended");

pub(crate) fn operation() -> Operation {
    Operation::new("End a session", "Its tokens become invalid at once.")
        .bearer()
        .path_parameter(
            "id",
            "As in the list of active sessions.",
            "0199aa6e5b5c4d5f8e7b4d4a5a3b2c1d",
        )
        .response(StatusCode::OK, "Ended", &SUCCESS)
        .errors(bearer::possible_errors())
        .errors([ApiError::SessionNotFound])
}

/// Responds to the id of another user's session as to an unknown one.
pub(crate) async fn handle(
    State(state): State<AppState>,
    request: RequestInfo,
    Authenticated { principal, .. }: Authenticated,
    Path(id): Path<String>,
) -> Result<Json<MessageResponse>, ApiError> {
    let session = SessionId::parse(&id).ok_or(ApiError::SessionNotFound)?;
    let target = Principal {
        session,
        ..principal
    };
    let end = end(state.clone(), request, target);
    state.lifecycle.complete(end).await?;
    Ok(Json(SUCCESS))
}

async fn end(state: AppState, request: RequestInfo, target: Principal) -> Result<(), ApiError> {
    match state.sessions.end(target).await? {
        EndOutcome::NotFound => Err(ApiError::SessionNotFound),
        EndOutcome::Ended => {
            state.metrics.sessions_ended.inc();
            audit::record(AuditEvent::SessionEnded, target.user, &request);
            Ok(())
        }
    }
}
