//! `POST /api/login`: checks a password and begins a session.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::Utc;

use crate::app::App;
use crate::audit::{Event, Subject, Visitor};
use crate::credentials::{self, Credentials};
use crate::domain::password::NewPassword;
use crate::domain::refresh_token::RefreshToken;
use crate::domain::session::{NewSession, SessionId};
use crate::domain::token::Principal;
use crate::domain::user::Account;
use crate::error::Error;
use crate::openapi::Operation;
use crate::tokens::{self, Response};

pub(crate) fn operation() -> Operation {
    Operation::new(
        "Log in",
        "Begins a session. The access token goes into `Authorization: Bearer …`; the refresh token \
         gets the next pair from `/api/refresh`.",
    )
    .takes::<Credentials>()
    .answers(StatusCode::OK, "Logged in", &Response::example())
    .refuses(credentials::refusals())
}

pub(crate) async fn handle(
    State(app): State<App>,
    visitor: Visitor,
    credentials: Credentials,
) -> Result<Json<Response>, Error> {
    let outcome = log_in(&app, &visitor, &credentials).await;
    let name = match &outcome {
        Ok(_) => "ok",
        Err(Error::InvalidCredentials) => "invalid",
        Err(Error::LockedOut(_)) => "locked_out",
        Err(Error::QueueFull(_)) => "queue_full",
        Err(_) => "unavailable",
    };
    app.metrics.logins.with_label_values(&[name]).inc();
    outcome
}

async fn log_in(
    app: &App,
    visitor: &Visitor,
    credentials: &Credentials,
) -> Result<Json<Response>, Error> {
    for _ in 0..TRIES {
        let account = credentials.account(app, visitor).await?;
        if let Some(account) = renew_hash(app, account, credentials).await? {
            let session = begin_session(app.clone(), visitor.clone(), account);
            if let Some(response) = app.lifecycle.complete(session).await? {
                return Ok(response);
            }
        }
    }
    Err(Error::InvalidCredentials)
}

/// An account that changes while we look at it may only have had its hash renewed by another login.
const TRIES: usize = 2;

/// Nothing where the account has changed since it was looked at.
async fn begin_session(
    app: App,
    visitor: Visitor,
    account: Account,
) -> Result<Option<Json<Response>>, Error> {
    let now = Utc::now();
    let principal = Principal {
        user: account.id,
        session: SessionId::random(),
    };
    let refresh = RefreshToken::random(principal);
    app.sessions
        .create(&NewSession {
            principal,
            refresh: refresh.hash(),
            created_at: now,
            expires_at: now + app.session_lifetime,
            origin: visitor.origin.clone(),
        })
        .await?;
    // A change of password, a deletion or a disabling since we looked has ended all sessions that
    // it knew of, and ours was not among them.
    if !app.users.log_in(&account, now).await? {
        app.sessions.end(principal).await?;
        return Ok(None);
    }
    app.metrics.sessions_created.inc();
    visitor.record(
        Event::LoggedIn,
        Subject::account(account.id, &account.login),
    );
    Ok(Some(tokens::issue(&app, &account.login, &refresh, now)))
}

/// A hash of another cost is made again while the password is at hand. One that may not be made
/// anew, since it breaks the rules of today or too many wait for theirs, stays as it is. Nothing where
/// somebody else has changed it.
async fn renew_hash(
    app: &App,
    account: Account,
    credentials: &Credentials,
) -> Result<Option<Account>, Error> {
    if !app.hasher.is_outdated(&account.hash) {
        return Ok(Some(account));
    }
    let text = std::str::from_utf8(credentials.password().bytes());
    let Some(password) = text.ok().and_then(|text| NewPassword::new(text).ok()) else {
        return Ok(Some(account));
    };
    let Ok(hash) = app.hasher.hash(&password).await else {
        return Ok(Some(account));
    };
    let is_renewed = app.users.set_hash(account.id, &account.hash, &hash).await?;
    Ok(is_renewed.then_some(Account { hash, ..account }))
}
