//! `GET /api/profile`: what a person may see of their own account.

use axum::Json;
use axum::extract::State;

use crate::app::App;
use crate::authenticate::Authenticated;
use crate::domain::user::Profile;
use crate::error::Error;

pub(crate) async fn handle(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
) -> Result<Json<Profile>, Error> {
    let profile = app.users.profile(principal.user).await?;
    profile.map(Json).ok_or(Error::UserNotFound)
}
