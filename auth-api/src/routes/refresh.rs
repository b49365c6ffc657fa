//! `POST /api/refresh`: exchanges a refresh token for new tokens. Each is good once; whoever uses
//! one again after the grace ends the whole session, since two hold it (RFC 9700, section 4.14.2).

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::app::App;
use crate::audit::{Event, Visitor};
use crate::body::Object;
use crate::domain::refresh_token::RefreshToken;
use crate::domain::session::{Ended, Exchange, Exchanged};
use crate::domain::user::Standing;
use crate::error::Error;
use crate::openapi::{self, Operation};
use crate::tokens::{self, Response};

/// What a client presents.
pub(crate) struct Refresh(String);

impl<S: Sync> FromRequest<S> for Refresh {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let body = Object::from_request(request, state).await?;
        body.text("refresh_token")
            .map(|text| Self(text.to_owned()))
            .map_err(|problem| Error::Invalid(vec![problem]))
    }
}

pub(crate) fn operation() -> Operation {
    Operation::new(
        "Renew tokens",
        "Exchanges a refresh token for a new pair. Each is good once: presented again after ten \
         seconds, it ends its session.",
    )
    .takes::<Refresh>()
    .answers(StatusCode::OK, "Renewed", &Response::example())
    .refuses([Error::InvalidRefreshToken, Error::Unavailable])
}

impl openapi::Body for Refresh {
    fn schema() -> Value {
        json!({
            "type": "object",
            "required": ["refresh_token"],
            "properties": {"refresh_token": {"type": "string"}},
        })
    }

    fn example() -> Value {
        json!({"refresh_token": "AAAAAAAAAN4BjDN6…"})
    }
}

pub(crate) async fn handle(
    State(app): State<App>,
    visitor: Visitor,
    Refresh(text): Refresh,
) -> Result<Json<Response>, Error> {
    let presented = app
        .refresh_tokens
        .decode(&text)
        .ok_or(Error::InvalidRefreshToken)?;
    let now = Utc::now();
    // Asked first, so that what cannot be answered is not exchanged either.
    let account = app.users.holder(presented.principal.user).await?;
    let login = account
        .filter(|(_, standing)| *standing == Standing::Active)
        .map(|(login, _)| login)
        .ok_or(Error::InvalidRefreshToken)?;
    let exchange = exchange(app.clone(), visitor, presented, now);
    let next = app.lifecycle.complete(exchange).await?;
    app.metrics.refreshes.inc();
    Ok(tokens::issue(&app, &login, &next, now))
}

/// The token that follows the one presented.
async fn exchange(
    app: App,
    visitor: Visitor,
    presented: RefreshToken,
    now: DateTime<Utc>,
) -> Result<RefreshToken, Error> {
    let principal = presented.principal;
    let next = RefreshToken::random(principal);
    let exchange = Exchange {
        principal,
        presented: presented.hash(),
        next: next.hash(),
        sealed: presented.seal_successor(&next),
        now,
        expires_at: now + app.session_lifetime,
    };
    match app.sessions.exchange(&exchange).await? {
        Exchanged::Rotated => Ok(next),
        Exchanged::Repeated(sealed) => Ok(presented.open_successor(sealed)),
        Exchanged::Used => {
            if app.sessions.end(principal).await? == Ended::Now {
                app.metrics.sessions_ended.inc();
            }
            visitor.record(Event::RefreshTokenReused, principal.user);
            Err(Error::InvalidRefreshToken)
        }
        Exchanged::Gone => Err(Error::InvalidRefreshToken),
    }
}
