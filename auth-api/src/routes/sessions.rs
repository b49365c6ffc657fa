//! `GET /api/sessions`, `DELETE /api/sessions/{id}`: where somebody is logged in, and ending that.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use crate::app::App;
use crate::audit::{Event, Visitor};
use crate::authenticate::{self, Authenticated};
use crate::domain::session::{Ended, SessionId};
use crate::domain::token::Principal;
use crate::error::Error;
use crate::openapi::Operation;
use crate::routes::done::Done;

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Sessions")]
pub(crate) struct Response {
    sessions: Vec<Session>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Session {
    id: String,
    created_at: DateTime<Utc>,
    last_used: DateTime<Utc>,
    address: String,
    user_agent: String,
    /// The one that asks.
    current: bool,
}

const SUCCESS: Done = Done::saying("Session ended");

/// What an id looks like.
const EXAMPLE: &str = "0199aa6e5b5c4d5f8e7b4d4a5a3b2c1d";

pub(crate) fn list_operation() -> Operation {
    let at = DateTime::from_timestamp_micros(1_795_441_820_191_421).unwrap_or_default();
    let session = Session {
        id: EXAMPLE.to_owned(),
        created_at: at,
        last_used: at,
        address: "192.0.2.1".to_owned(),
        user_agent: "Mozilla/5.0 …".to_owned(),
        current: true,
    };
    let sessions = vec![session];
    Operation::new("List live sessions", "Where the account is logged in.")
        .bearer()
        .answers(StatusCode::OK, "Live sessions", &Response { sessions })
        .refuses(authenticate::refusals())
}

pub(crate) fn end_operation() -> Operation {
    Operation::new("End a session", "Its tokens are no good from now on.")
        .bearer()
        .path("id", "As in the list of live sessions.", EXAMPLE)
        .answers(StatusCode::OK, "Ended", &SUCCESS)
        .refuses(authenticate::refusals())
        .refuses([Error::SessionNotFound])
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
) -> Result<Json<Done>, Error> {
    let session = SessionId::parse(&id).ok_or(Error::SessionNotFound)?;
    let other = Principal {
        session,
        ..principal
    };
    let end = end_session(app.clone(), visitor, other);
    app.lifecycle.complete(end).await?;
    Ok(Json(SUCCESS))
}

async fn end_session(app: App, visitor: Visitor, session: Principal) -> Result<(), Error> {
    match app.sessions.end(session).await? {
        Ended::Before => Err(Error::SessionNotFound),
        Ended::Now => {
            app.metrics.sessions_ended.inc();
            visitor.record(Event::SessionEnded, session.user);
            Ok(())
        }
    }
}
