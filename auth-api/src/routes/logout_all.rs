//! `POST /api/logout-all`: ends every session of the user.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::Utc;
use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::user::UserId;
use crate::http::bearer::{self, Authenticated};
use crate::http::error::ApiError;
use crate::http::openapi::Operation;
use crate::state::AppState;
use crate::telemetry::audit::AuditEvent;
use crate::telemetry::request_info::RequestInfo;

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "LoggedOutEverywhere")]
pub(crate) struct LogoutAllResponse {
    message: &'static str,
    /// Number of ended sessions, including that of the request.
    ended: u64,
}

const SUCCESS: &str = "Successfully logged out everywhere";

pub(crate) fn operation() -> Operation {
    let message = SUCCESS;
    Operation::new("Log out everywhere", "Ends every session of the user.")
        .bearer()
        .response(
            StatusCode::OK,
            "Logged out",
            &LogoutAllResponse { message, ended: 2 },
        )
        .errors(bearer::possible_errors())
}

pub(crate) async fn handle(
    State(state): State<AppState>,
    request: RequestInfo,
    Authenticated { principal, .. }: Authenticated,
) -> Result<Json<LogoutAllResponse>, ApiError> {
    let logout = log_out_everywhere(state.clone(), request, principal.user);
    let ended = state.lifecycle.complete(logout).await?;
    Ok(Json(LogoutAllResponse {
        message: SUCCESS,
        ended,
    }))
}

async fn log_out_everywhere(
    state: AppState,
    request: RequestInfo,
    user: UserId,
) -> Result<u64, ApiError> {
    // By the account first, which holds whatever the store of sessions loses.
    state.users.end_sessions((user, user), Utc::now()).await?;
    let ended = state.sessions.end_all(user).await?;
    state.metrics.sessions_ended.inc_by(ended);
    state
        .audit
        .record(AuditEvent::AllSessionsEnded, user, &request)
        .await?;
    Ok(ended)
}
