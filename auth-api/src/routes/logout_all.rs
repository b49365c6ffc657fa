//! `POST /api/logout-all`: ends every session of whoever asks.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

use crate::app::App;
use crate::audit::{Event, Visitor};
use crate::authenticate::{self, Authenticated};
use crate::domain::user::UserId;
use crate::error::Error;
use crate::openapi::Operation;

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "LoggedOutEverywhere")]
pub(crate) struct Response {
    message: &'static str,
    /// Sessions that have ended, the one that asked among them.
    ended: u64,
}

const SUCCESS: &str = "Successfully logged out everywhere";

pub(crate) fn operation() -> Operation {
    let message = SUCCESS;
    Operation::new("Log out everywhere", "Ends every session of whoever asks.")
        .bearer()
        .answers(
            StatusCode::OK,
            "Logged out",
            &Response { message, ended: 2 },
        )
        .refuses(authenticate::refusals())
}

pub(crate) async fn handle(
    State(app): State<App>,
    visitor: Visitor,
    Authenticated(principal): Authenticated,
) -> Result<Json<Response>, Error> {
    let end = log_out(app.clone(), visitor, principal.user);
    let ended = app.lifecycle.complete(end).await?;
    Ok(Json(Response {
        message: SUCCESS,
        ended,
    }))
}

async fn log_out(app: App, visitor: Visitor, user: UserId) -> Result<u64, Error> {
    let ended = app.sessions.end_all(user).await?;
    app.metrics.sessions_ended.inc_by(ended);
    visitor.record(Event::AllSessionsEnded, user);
    Ok(ended)
}
