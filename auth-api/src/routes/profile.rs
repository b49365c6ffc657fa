//! `GET /api/profile`: returns the profile of the user.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::DateTime;

use crate::domain::user::{Profile, UserId};
use crate::http::bearer::{self, Authenticated};
use crate::http::error::ApiError;
use crate::http::openapi::Operation;
use crate::state::AppState;

pub(crate) fn operation() -> Operation {
    let time = DateTime::from_timestamp_micros(1_795_441_820_191_421);
    let profile = Profile {
        id: UserId(222),
        login: "alice".to_owned(),
        created_at: time,
        last_login: time,
    };
    Operation::new("Get the profile", "Returns the account of the token.")
        .bearer()
        .response(StatusCode::OK, "The account", &profile)
        .errors(bearer::possible_errors())
        .errors([ApiError::UserNotFound])
}

pub(crate) async fn handle(
    State(state): State<AppState>,
    Authenticated(principal): Authenticated,
) -> Result<Json<Profile>, ApiError> {
    let profile = state.users.profile(principal.user).await?;
    profile.map(Json).ok_or(ApiError::UserNotFound)
}
