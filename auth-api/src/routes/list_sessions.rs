//! `GET /api/sessions`: lists the active sessions of the user.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use crate::http::bearer::{self, Authenticated};
use crate::http::error::ApiError;
use crate::http::openapi::Operation;
use crate::state::AppState;

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Sessions")]
pub(crate) struct SessionsResponse {
    sessions: Vec<SessionEntry>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Session")]
struct SessionEntry {
    id: String,
    created_at: DateTime<Utc>,
    last_used: DateTime<Utc>,
    address: String,
    user_agent: String,
    /// Session of the request.
    current: bool,
}

pub(crate) fn operation() -> Operation {
    let time = DateTime::from_timestamp_micros(1_795_441_820_191_421).unwrap_or_default();
    let session = SessionEntry {
        id: "0199aa6e5b5c4d5f8e7b4d4a5a3b2c1d".to_owned(),
        created_at: time,
        last_used: time,
        address: "192.0.2.1".to_owned(),
        user_agent: "Mozilla/5.0 …".to_owned(),
        current: true,
    };
    let sessions = vec![session];
    Operation::new("List active sessions", "The sessions of the account.")
        .bearer()
        .response(
            StatusCode::OK,
            "Active sessions",
            &SessionsResponse { sessions },
        )
        .errors(bearer::possible_errors())
}

pub(crate) async fn handle(
    State(state): State<AppState>,
    Authenticated { principal, account }: Authenticated,
) -> Result<Json<SessionsResponse>, ApiError> {
    let cutoff = account.standing.cutoff;
    let sessions = state
        .sessions
        .list(principal.user, cutoff, state.session_policy)
        .await?;
    let sessions = sessions
        .into_iter()
        .map(|session| SessionEntry {
            id: session.id.to_string(),
            created_at: session.created_at,
            last_used: session.last_used,
            address: session.client.address,
            user_agent: session.client.user_agent,
            current: session.id == principal.session,
        })
        .collect();
    Ok(Json(SessionsResponse { sessions }))
}
