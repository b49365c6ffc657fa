//! `POST /api/logout-all`: ends every session of whoever asks.

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use crate::app::App;
use crate::audit::{Event, Visitor};
use crate::authenticate::Authenticated;
use crate::error::Error;

#[derive(Debug, Serialize)]
pub(crate) struct Response {
    message: &'static str,
    /// Sessions that have ended, the one that asked among them.
    ended: u64,
}

pub(crate) async fn handle(
    State(app): State<App>,
    visitor: Visitor,
    Authenticated(principal): Authenticated,
) -> Result<Json<Response>, Error> {
    let ended = app.sessions.end_all(principal.user).await?;
    app.metrics.sessions_ended.inc_by(ended);
    visitor.record(Event::AllSessionsEnded, principal.user);
    let message = "Successfully logged out everywhere";
    Ok(Json(Response { message, ended }))
}
