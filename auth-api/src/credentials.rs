//! A login and a password, presented to be checked.

use std::time::Duration;

use axum::extract::{FromRequest, Request};
use serde_json::{Value, json};

use crate::app::App;
use crate::audit::{Event, Subject, Visitor};
use crate::body::{Object, Problem};
use crate::domain::login::Login;
use crate::domain::password::Password;
use crate::domain::user::{Account, Standing};
use crate::error::Error;
use crate::hashing::QueueFull;
use crate::openapi;
use crate::throttle::{self, LockedOut, Outcome};

/// What login and delete take. Rules for new passwords do not apply: what breaks them is simply wrong.
#[derive(Debug)]
pub(crate) struct Credentials {
    /// `None` where no account can have that login.
    login: Option<Login>,
    password: Password,
}

impl<S: Sync> FromRequest<S> for Credentials {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let body = Object::from_request(request, state).await?;
        let (login, password) = both(body.text("login"), body.text("password"))?;
        Ok(Self {
            login: Login::existing(login),
            password: Password::presented(password),
        })
    }
}

impl openapi::Body for Credentials {
    fn schema() -> Value {
        json!({
            "type": "object",
            "required": ["login", "password"],
            "properties": {"login": {"type": "string"}, "password": {"type": "string"}},
        })
    }

    fn example() -> Value {
        json!({"login": "alice", "password": "securepassword123"})
    }
}

/// How credentials may be refused.
pub(crate) fn refusals() -> [Error; 4] {
    let retry_after = throttle::WINDOW;
    [
        Error::InvalidCredentials,
        Error::LockedOut(LockedOut { retry_after }),
        queue_full(),
        Error::Unavailable,
    ]
}

/// A refusal of the hashing queue, for the document.
pub(crate) fn queue_full() -> Error {
    let retry_after = Duration::from_secs(3);
    Error::QueueFull(QueueFull { retry_after })
}

impl Credentials {
    pub(crate) fn new(login: Login, password: Password) -> Self {
        Self {
            login: Some(login),
            password,
        }
    }

    /// The account that these are right for. A wrong password, an unknown login and a disabled
    /// account take the same time and are told the same.
    pub(crate) async fn account(&self, app: &App, visitor: &Visitor) -> Result<Account, Error> {
        let Some(login) = &self.login else {
            app.hasher.verify_nobody(&self.password).await?;
            visitor.record(Event::LoginFailed, Subject::default());
            return Err(Error::InvalidCredentials);
        };
        if let Err(locked) = app.throttle.may_try(login).await? {
            visitor.record(Event::LockedOut, login);
            return Err(Error::LockedOut(locked));
        }
        let account = self.check(app, login).await?;
        let verdict = settle(app.clone(), visitor.clone(), login.clone(), account);
        app.lifecycle.complete(verdict).await
    }

    async fn check(&self, app: &App, login: &Login) -> Result<Option<Account>, Error> {
        let Some(account) = app.users.account(login).await? else {
            app.hasher.verify_nobody(&self.password).await?;
            return Ok(None);
        };
        let is_right = app.hasher.verify(&self.password, &account.hash).await?;
        if is_right && account.standing == Standing::Active {
            return Ok(Some(account));
        }
        app.hasher.make_up(&self.password, &account.hash).await;
        Ok(None)
    }

    pub(crate) fn password(&self) -> &Password {
        &self.password
    }
}

/// Counts what became of a check, and says it.
async fn settle(
    app: App,
    visitor: Visitor,
    login: Login,
    account: Option<Account>,
) -> Result<Account, Error> {
    let outcome = match account {
        Some(_) => Outcome::Right,
        None => Outcome::Wrong,
    };
    if let Err(locked) = app.throttle.settle(&login, outcome).await? {
        visitor.record(Event::LockedOut, &login);
        return Err(Error::LockedOut(locked));
    }
    account.ok_or_else(|| {
        visitor.record(Event::LoginFailed, &login);
        Error::InvalidCredentials
    })
}

/// Both fields, or every problem with them.
pub(crate) fn both<A, B>(
    one: Result<A, Problem>,
    other: Result<B, Problem>,
) -> Result<(A, B), Error> {
    match (one, other) {
        (Ok(one), Ok(other)) => Ok((one, other)),
        (one, other) => Err(Error::Invalid(
            one.err().into_iter().chain(other.err()).collect(),
        )),
    }
}
