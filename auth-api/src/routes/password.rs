//! `POST /api/password`: changes a password and ends every other session.

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use serde::Serialize;

use crate::app::App;
use crate::audit::{Event, Visitor};
use crate::authenticate::Authenticated;
use crate::body::{Object, Problem};
use crate::credentials::{Credentials, both};
use crate::domain::password::{NewPassword, Password};
use crate::error::Error;

/// The password as it is, and as it is to be.
#[derive(Debug)]
pub(crate) struct Change {
    current: Password,
    new: NewPassword,
}

#[derive(Debug, Serialize)]
pub(crate) struct Response {
    message: &'static str,
}

impl<S: Sync> FromRequest<S> for Change {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let body = Object::from_request(request, state).await?;
        let current = body.text("current_password").map(Password::presented);
        let new = body
            .text("new_password")
            .and_then(|text| NewPassword::new(text).map_err(wrong));
        let (current, new) = both(current, new)?;
        Ok(Self { current, new })
    }
}

pub(crate) async fn handle(
    State(app): State<App>,
    visitor: Visitor,
    Authenticated(principal): Authenticated,
    Change { current, new }: Change,
) -> Result<Json<Response>, Error> {
    let (login, _) = app
        .users
        .holder(principal.user)
        .await?
        .ok_or(Error::UserNotFound)?;
    let new = new
        .for_login(&login)
        .map_err(|why| Error::Invalid(vec![wrong(why)]))?;
    let account = Credentials::new(login, current)
        .account(&app, &visitor)
        .await?;
    let hash = app.hasher.hash(&new).await?;
    if !app.users.set_hash(account.id, &account.hash, &hash).await? {
        // Another change came between: the password presented is no longer the current one.
        return Err(Error::InvalidCredentials);
    }
    let ended = app.sessions.end_others(principal).await?;
    app.metrics.sessions_ended.inc_by(ended);
    visitor.record(Event::PasswordChanged, principal.user);
    let message = "Password changed";
    Ok(Json(Response { message }))
}

fn wrong(why: impl std::fmt::Display) -> Problem {
    Problem::value("new_password", why)
}
