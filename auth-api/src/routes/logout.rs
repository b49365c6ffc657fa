//! `POST /api/logout`: ends the session of the presented token.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::domain::principal::Principal;
use crate::domain::session::EndOutcome;
use crate::http::bearer::{self, BearerToken};
use crate::http::error::ApiError;
use crate::http::message_response::MessageResponse;
use crate::http::openapi::Operation;
use crate::state::AppState;
use crate::telemetry::audit::AuditEvent;
use crate::telemetry::request_info::RequestInfo;

const SUCCESS: MessageResponse = MessageResponse::new("Successfully logged out");

pub(crate) fn operation() -> Operation {
    Operation::new("Log out", "Ends the session of the presented token.")
        .bearer()
        .response(StatusCode::OK, "Logged out", &SUCCESS)
        .errors(bearer::possible_errors())
        .errors([ApiError::AlreadyLoggedOut])
}

pub(crate) async fn handle(
    State(state): State<AppState>,
    request: RequestInfo,
    BearerToken(principal): BearerToken,
) -> Result<Json<MessageResponse>, ApiError> {
    let logout = log_out(state.clone(), request, principal);
    state.lifecycle.complete(logout).await?;
    Ok(Json(SUCCESS))
}

async fn log_out(
    state: AppState,
    request: RequestInfo,
    principal: Principal,
) -> Result<(), ApiError> {
    match state.sessions.end(principal).await? {
        EndOutcome::NotFound => Err(ApiError::AlreadyLoggedOut),
        EndOutcome::Ended => {
            state.metrics.sessions_ended.inc();
            state
                .audit
                .record(AuditEvent::LoggedOut, principal.user, &request)
                .await?;
            Ok(())
        }
    }
}
