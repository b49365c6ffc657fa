//! `POST /api/logout`: ends the session of the token that is presented.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

use crate::app::App;
use crate::audit::{Event, Visitor};
use crate::authenticate::{self, Bearer};
use crate::domain::session::Ended;
use crate::error::Error;
use crate::openapi::Operation;

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "LoggedOut")]
pub(crate) struct Response {
    message: &'static str,
}

const SUCCESS: &str = "Successfully logged out";

pub(crate) fn operation() -> Operation {
    let message = SUCCESS;
    Operation::new(
        "Log out",
        "Ends the session of the token that is presented.",
    )
    .bearer()
    .answers(StatusCode::OK, "Logged out", &Response { message })
    .refuses(authenticate::refusals())
    .refuses([Error::NotLoggedOut])
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
            Ok(Json(Response { message: SUCCESS }))
        }
    }
}
