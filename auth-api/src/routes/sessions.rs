//! `GET /api/sessions`, `DELETE /api/sessions/{id}`: where somebody is logged in, and ending that.

use axum::Json;
use axum::extract::{Path, State};
use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::app::App;
use crate::audit::{Event, Visitor};
use crate::authenticate::Authenticated;
use crate::domain::session::{Ended, SessionId};
use crate::domain::token::Principal;
use crate::error::Error;

#[derive(Debug, Serialize)]
pub(crate) struct Response {
    sessions: Vec<Session>,
}

#[derive(Debug, Serialize)]
struct Session {
    id: String,
    created_at: DateTime<Utc>,
    last_used: DateTime<Utc>,
    address: String,
    user_agent: String,
    /// The one that asks.
    current: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct EndedResponse {
    message: &'static str,
}

pub(crate) async fn list(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
) -> Result<Json<Response>, Error> {
    let sessions = app.sessions.list(principal.user).await?;
    let sessions = sessions
        .into_iter()
        .map(|session| Session {
            id: session.id.to_string(),
            created_at: session.created_at,
            last_used: session.last_used,
            address: session.origin.address,
            user_agent: session.origin.user_agent,
            current: session.id == principal.session,
        })
        .collect();
    Ok(Json(Response { sessions }))
}

/// Another's session is told apart from none by nothing.
pub(crate) async fn end(
    State(app): State<App>,
    visitor: Visitor,
    Authenticated(principal): Authenticated,
    Path(id): Path<String>,
) -> Result<Json<EndedResponse>, Error> {
    let session = SessionId::parse(&id).ok_or(Error::SessionNotFound)?;
    let other = Principal {
        session,
        ..principal
    };
    match app.sessions.end(other).await? {
        Ended::Before => Err(Error::SessionNotFound),
        Ended::Now => {
            app.metrics.sessions_ended.inc();
            visitor.record(Event::SessionEnded, principal.user);
            let message = "Session ended";
            Ok(Json(EndedResponse { message }))
        }
    }
}
