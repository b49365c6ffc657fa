//! `POST /api/password`: changes a password and ends every other session.

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::app::App;
use crate::audit::{Event, Visitor};
use crate::authenticate::{self, Authenticated};
use crate::body::{Object, Problem};
use crate::credentials::{self, Credentials, both};
use crate::domain::password::{NewPassword, Password, PasswordHash};
use crate::domain::token::Principal;
use crate::domain::user::Account;
use crate::error::Error;
use crate::openapi::{self, Operation};
use crate::routes::done::Done;

/// The password as it is, and as it is to be.
#[derive(Debug)]
pub(crate) struct Change {
    current: Password,
    new: NewPassword,
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

const SUCCESS: Done = Done::saying("Password changed");

pub(crate) fn operation() -> Operation {
    Operation::new(
        "Change the password",
        "Ends every other session. The new password must be none of the commonest and not the login.",
    )
    .bearer()
    .takes::<Change>()
    .answers(StatusCode::OK, "Changed", &SUCCESS)
    .refuses(authenticate::refusals())
    .refuses(credentials::refusals())
    .refuses([Error::UserNotFound])
}

impl openapi::Body for Change {
    fn schema() -> Value {
        json!({
            "type": "object",
            "required": ["current_password", "new_password"],
            "properties": {
                "current_password": {"type": "string"},
                "new_password": NewPassword::schema(),
            },
        })
    }

    fn example() -> Value {
        json!({"current_password": "securepassword123", "new_password": "a better password"})
    }
}

pub(crate) async fn handle(
    State(app): State<App>,
    visitor: Visitor,
    Authenticated(principal): Authenticated,
    Change { current, new }: Change,
) -> Result<Json<Done>, Error> {
    let (login, _) = app
        .users
        .holder(principal.user)
        .await?
        .ok_or(Error::UserNotFound)?;
    let new = new
        .for_login(&login)
        .map_err(|why| Error::Invalid(vec![wrong(why)]))?;
    let credentials = Credentials::new(login, current);
    let account = credentials.account(&app, &visitor).await?;
    let hash = app.hasher.hash(&new).await?;
    let attempt = |account| {
        let (app, visitor) = (app.clone(), visitor.clone());
        change(app, visitor, principal, account, hash.clone())
    };
    let mut changed = app.lifecycle.complete(attempt(account)).await?;
    if changed == Changed::BySomebodyElse {
        // It may only have been renewed, by a login.
        let account = credentials.account(&app, &visitor).await?;
        changed = app.lifecycle.complete(attempt(account)).await?;
    }
    match changed {
        Changed::Now => Ok(Json(SUCCESS)),
        Changed::BySomebodyElse => Err(Error::InvalidCredentials),
    }
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Changed {
    Now,
    /// The hash is not the one that the current password was found right for.
    BySomebodyElse,
}

/// First the other sessions: if their store fails there, nothing has happened yet. Then once more
/// for a login with the old password that came between.
async fn change(
    app: App,
    visitor: Visitor,
    principal: Principal,
    account: Account,
    hash: PasswordHash,
) -> Result<Changed, Error> {
    let ended = &app.metrics.sessions_ended;
    ended.inc_by(app.sessions.end_others(principal).await?);
    if !app.users.set_hash(account.id, &account.hash, &hash).await? {
        return Ok(Changed::BySomebodyElse);
    }
    visitor.record(Event::PasswordChanged, principal.user);
    ended.inc_by(app.sessions.end_others(principal).await?);
    Ok(Changed::Now)
}

fn wrong(why: impl std::fmt::Display) -> Problem {
    Problem::value("new_password", why)
}
