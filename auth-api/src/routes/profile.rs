//! `GET /api/profile`: what a person may see of their own account.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::DateTime;

use crate::app::App;
use crate::authenticate::{self, Authenticated};
use crate::domain::user::{Profile, UserId};
use crate::error::Error;
use crate::openapi::Operation;

pub(crate) fn operation() -> Operation {
    let at = DateTime::from_timestamp_micros(1_795_441_820_191_421);
    let profile = Profile {
        id: UserId(222),
        login: "alice".to_owned(),
        created_at: at,
        last_login: at,
    };
    Operation::new("Read the own account", "Whose the token is.")
        .bearer()
        .answers(StatusCode::OK, "The account", &profile)
        .refuses(authenticate::refusals())
        .refuses([Error::UserNotFound])
}

pub(crate) async fn handle(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
) -> Result<Json<Profile>, Error> {
    let profile = app.users.profile(principal.user).await?;
    profile.map(Json).ok_or(Error::UserNotFound)
}
