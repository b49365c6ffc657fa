//! `POST /api/logout`: ends the session of the token that is presented.

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use crate::app::App;
use crate::audit::{Event, Visitor};
use crate::authenticate::Bearer;
use crate::domain::session::Ended;
use crate::error::Error;

#[derive(Debug, Serialize)]
pub(crate) struct Response {
    message: &'static str,
}

pub(crate) async fn handle(
    State(app): State<App>,
    visitor: Visitor,
    Bearer(principal): Bearer,
) -> Result<Json<Response>, Error> {
    match app.sessions.end(principal).await? {
        Ended::Before => Err(Error::NotLoggedOut),
        Ended::Now => {
            app.metrics.sessions_ended.inc();
            visitor.record(Event::LoggedOut, principal.user);
            let message = "Successfully logged out";
            Ok(Json(Response { message }))
        }
    }
}
