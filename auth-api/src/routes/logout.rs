//! `POST /api/logout`: ends the session of the token that is presented.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::app::App;
use crate::audit::{Event, Visitor};
use crate::authenticate::{self, Bearer};
use crate::domain::session::Ended;
use crate::domain::token::Principal;
use crate::error::Error;
use crate::openapi::Operation;
use crate::routes::done::Done;

const SUCCESS: Done = Done::saying("Successfully logged out");

pub(crate) fn operation() -> Operation {
    Operation::new(
        "Log out",
        "Ends the session of the token that is presented.",
    )
    .bearer()
    .answers(StatusCode::OK, "Logged out", &SUCCESS)
    .refuses(authenticate::refusals())
    .refuses([Error::NotLoggedOut])
}

pub(crate) async fn handle(
    State(app): State<App>,
    visitor: Visitor,
    Bearer(principal): Bearer,
) -> Result<Json<Done>, Error> {
    let end = log_out(app.clone(), visitor, principal);
    app.lifecycle.complete(end).await?;
    Ok(Json(SUCCESS))
}

async fn log_out(app: App, visitor: Visitor, principal: Principal) -> Result<(), Error> {
    match app.sessions.end(principal).await? {
        Ended::Before => Err(Error::NotLoggedOut),
        Ended::Now => {
            app.metrics.sessions_ended.inc();
            visitor.record(Event::LoggedOut, principal.user);
            Ok(())
        }
    }
}
