//! `POST /api/register`: makes an account.

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::audit::{Event, Subject, Visitor};
use crate::body::{Object, Problem};
use crate::credentials::{both, queue_full};
use crate::domain::login::Login;
use crate::domain::password::{NewPassword, PasswordHash};
use crate::domain::user::UserId;
use crate::error::Error;
use crate::openapi::{self, Operation};
use crate::users::NotAdded;

/// A login and a password that may become an account.
#[derive(Debug)]
pub(crate) struct Registration {
    login: Login,
    password: NewPassword,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Registered")]
pub(crate) struct Response {
    id: UserId,
}

pub(crate) fn operation() -> Operation {
    Operation::new(
        "Register",
        "Makes an account. The password must be none of the commonest and not the login.",
    )
    .takes::<Registration>()
    .answers(
        StatusCode::CREATED,
        "Registered",
        &Response { id: UserId(222) },
    )
    .refuses([Error::LoginTaken, queue_full(), Error::Unavailable])
}

impl openapi::Body for Registration {
    fn schema() -> Value {
        json!({
            "type": "object",
            "required": ["login", "password"],
            "properties": {"login": Login::schema(), "password": NewPassword::schema()},
        })
    }

    fn example() -> Value {
        json!({"login": "alice", "password": "securepassword123"})
    }
}

pub(crate) async fn handle(
    State(app): State<App>,
    visitor: Visitor,
    registration: Registration,
) -> Result<(StatusCode, Json<Response>), Error> {
    let hash = app.hasher.hash(&registration.password).await?;
    let addition = add(app.clone(), visitor, registration.login, hash);
    let id = app.lifecycle.complete(addition).await?;
    Ok((StatusCode::CREATED, Json(Response { id })))
}

async fn add(
    app: App,
    visitor: Visitor,
    login: Login,
    hash: PasswordHash,
) -> Result<UserId, Error> {
    let id = match app.users.add(&login, &hash).await {
        Ok(id) => id,
        Err(NotAdded::Taken) => return Err(Error::LoginTaken),
        Err(NotAdded::Unavailable(store)) => return Err(store.into()),
    };
    visitor.record(Event::Registered, Subject::account(id, &login));
    Ok(id)
}

impl<S: Sync> FromRequest<S> for Registration {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let body = Object::from_request(request, state).await?;
        let login = body
            .text("login")
            .and_then(|text| Login::new(text).map_err(|why| Problem::value("login", why)));
        let password = body
            .text("password")
            .and_then(|text| NewPassword::new(text).map_err(|why| Problem::value("password", why)));
        let (login, password) = both(login, password)?;
        let password = password
            .for_login(&login)
            .map_err(|why| Error::Invalid(vec![Problem::value("password", why)]))?;
        Ok(Self { login, password })
    }
}
