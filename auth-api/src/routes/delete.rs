//! `POST /api/delete`: ends an account and every session of it.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::app::App;
use crate::audit::{Event, Subject, Visitor};
use crate::credentials::{self, Credentials};
use crate::domain::user::Account;
use crate::error::Error;
use crate::openapi::Operation;
use crate::routes::done::Done;
use crate::users::Deleted;

const SUCCESS: Done = Done::saying("User deleted successfully");

pub(crate) fn operation() -> Operation {
    Operation::new(
        "Delete the account",
        "Ends the account and every session of it.",
    )
    .takes::<Credentials>()
    .answers(StatusCode::OK, "Deleted", &SUCCESS)
    .refuses(credentials::refusals())
}

pub(crate) async fn handle(
    State(app): State<App>,
    visitor: Visitor,
    credentials: Credentials,
) -> Result<Json<Done>, Error> {
    let account = credentials.account(&app, &visitor).await?;
    let deletion = delete(app.clone(), visitor, account);
    app.lifecycle.complete(deletion).await?;
    Ok(Json(SUCCESS))
}

/// First the sessions: if their store fails there, nothing has happened yet. Then once more for a
/// login that came between.
async fn delete(app: App, visitor: Visitor, account: Account) -> Result<(), Error> {
    let ended = &app.metrics.sessions_ended;
    ended.inc_by(app.sessions.end_all(account.id).await?);
    if app.users.delete(account.id).await? == Deleted::Before {
        return Err(Error::InvalidCredentials);
    }
    visitor.record(Event::Deleted, Subject::account(account.id, &account.login));
    ended.inc_by(app.sessions.end_all(account.id).await?);
    Ok(())
}
