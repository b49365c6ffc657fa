//! A login and a password, presented to be checked.

use axum::extract::{FromRequest, Request};

use crate::app::App;
use crate::body::{Object, Problem};
use crate::domain::login::Login;
use crate::domain::password::Password;
use crate::domain::user::Account;
use crate::error::Error;

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

impl Credentials {
    /// The account that these are right for. A wrong password and an unknown login take the same time.
    pub(crate) async fn account(&self, app: &App) -> Result<Account, Error> {
        let account = match &self.login {
            Some(login) => app.users.account(login).await?,
            None => None,
        };
        let Some(account) = account else {
            app.hasher.verify_nobody(&self.password).await?;
            return Err(Error::InvalidCredentials);
        };
        if !app.hasher.verify(&self.password, &account.hash).await? {
            return Err(Error::InvalidCredentials);
        }
        Ok(account)
    }

    pub(crate) fn password(&self) -> &Password {
        &self.password
    }
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
