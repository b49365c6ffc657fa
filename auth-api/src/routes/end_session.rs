//! `DELETE /api/sessions/{id}`: ends one session of the user.

use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;

use crate::domain::principal::{Principal, SessionId};
use crate::domain::session::EndOutcome;
use crate::http::bearer::{self, Authenticated};
use crate::http::error::ApiError;
use crate::http::message_response::MessageResponse;
use crate::http::openapi::Operation;
use crate::state::AppState;
use crate::telemetry::audit::AuditEvent;
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

/// Session that the path names.
pub(crate) struct SessionIdOfPath(SessionId);

impl<S: Send + Sync> FromRequestParts<S> for SessionIdOfPath {
    type Rejection = ApiError;

    /// Rejects what is no id like an unknown one, percent-encoded bytes that are not UTF-8 included.
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path: Result<Path<String>, _> = Path::from_request_parts(parts, state).await;
        path.ok()
            .and_then(|Path(id)| SessionId::parse(&id))
            .map(Self)
            .ok_or(ApiError::SessionNotFound)
    }
}

/// Responds to the id of another user's session as to an unknown one.
pub(crate) async fn handle(
    State(state): State<AppState>,
    request: RequestInfo,
    Authenticated { principal, .. }: Authenticated,
    SessionIdOfPath(session): SessionIdOfPath,
) -> Result<Json<MessageResponse>, ApiError> {
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
            state
                .audit
                .record(AuditEvent::SessionEnded, target.user, &request)
                .await?;
            Ok(())
        }
    }
}
