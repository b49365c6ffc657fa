//! `GET /api/profile`: returns the profile of the user.

use axum::Json;
use axum::http::StatusCode;
use chrono::DateTime;

use crate::domain::user::{Profile, UserId};
use crate::http::bearer::{self, Authenticated};
use crate::http::openapi::Operation;

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
}

pub(crate) async fn handle(Authenticated { account, .. }: Authenticated) -> Json<Profile> {
    Json(account.profile)
}
