//! Extractor of a login and a password to be verified.

use axum::extract::{FromRequest, Request};
use serde_json::{Value, json};

use super::error::ApiError;
use super::json_body::{JsonObject, both};
use super::openapi::RequestBody;
use crate::authentication::Credentials;
use crate::domain::login::PresentedLogin;
use crate::domain::password::Password;
use crate::throttle::{FAILURE_WINDOW, LockedOut};

impl<S: Sync> FromRequest<S> for Credentials {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = JsonObject::from_request(request, state).await?;
        let (login, password) = both(body.string("login"), body.string("password"))?;
        Ok(Self {
            login: PresentedLogin::new(login),
            password: Password::presented(password),
        })
    }
}

impl RequestBody for Credentials {
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

/// Returns the errors that authentication can produce, for the OpenAPI document.
pub(crate) fn possible_errors() -> [ApiError; 4] {
    let retry_after = FAILURE_WINDOW;
    [
        ApiError::InvalidCredentials,
        ApiError::LockedOut(LockedOut { retry_after }),
        ApiError::queue_full_example(),
        ApiError::Unavailable,
    ]
}
