//! `POST /api/login`: checks a password and begins a session.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use chrono::Utc;
use serde::Serialize;

use crate::app::App;
use crate::credentials::Credentials;
use crate::domain::password::NewPassword;
use crate::domain::session::{NewSession, RefreshToken, SessionId};
use crate::domain::token::Principal;
use crate::domain::user::Account;
use crate::error::Error;
use crate::visit;

#[derive(Debug, Serialize)]
pub(crate) struct Response {
    access_token: String,
    token_type: &'static str,
    /// Seconds.
    expires_in: u64,
    refresh_token: String,
}

pub(crate) async fn handle(
    State(app): State<App>,
    headers: HeaderMap,
    credentials: Credentials,
) -> Result<Json<Response>, Error> {
    let account = match credentials.account(&app).await {
        Ok(account) => account,
        Err(error) => {
            record_failure(&app, &error);
            return Err(error);
        }
    };
    renew_hash(&app, &account, &credentials).await?;
    let response = begin_session(&app, &account, &headers).await?;
    app.metrics.logins.with_label_values(&["ok"]).inc();
    tracing::info!(target: "audit", event = "login", user = account.id.0);
    Ok(Json(response))
}

async fn begin_session(
    app: &App,
    account: &Account,
    headers: &HeaderMap,
) -> Result<Response, Error> {
    let now = Utc::now();
    app.users.logged_in(account.id, now).await?;
    let session = SessionId::random();
    let refresh = RefreshToken::random(session);
    app.sessions
        .create(&NewSession {
            id: session,
            user: account.id,
            refresh: refresh.hash(),
            created_at: now,
            expires_at: now + app.session_lifetime,
            origin: visit::origin(headers),
        })
        .await?;
    app.metrics.sessions_created.inc();
    let principal = Principal {
        user: account.id,
        session,
    };
    Ok(Response {
        access_token: app.tokens.sign(&account.login, principal, now),
        token_type: "bearer",
        expires_in: app.tokens.lifetime().as_secs(),
        refresh_token: refresh.expose().to_owned(),
    })
}

/// A hash of another cost is made again while the password is at hand. One that may not be made
/// anew, since it breaks the rules of today, stays as it is.
async fn renew_hash(app: &App, account: &Account, credentials: &Credentials) -> Result<(), Error> {
    if !app.hasher.is_outdated(&account.hash) {
        return Ok(());
    }
    let Ok(text) = std::str::from_utf8(credentials.password().bytes()) else {
        return Ok(());
    };
    if let Ok(password) = NewPassword::new(text) {
        let new = app.hasher.hash(&password).await?;
        app.users
            .renew_hash(account.id, &account.hash, &new)
            .await?;
    }
    Ok(())
}

fn record_failure(app: &App, error: &Error) {
    let outcome = match error {
        Error::InvalidCredentials => {
            tracing::info!(target: "audit", event = "login failed");
            "invalid"
        }
        Error::QueueFull(_) => "queue_full",
        _ => "unavailable",
    };
    app.metrics.logins.with_label_values(&[outcome]).inc();
}
