//! `POST /api/register`: creates an account.

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::domain::login::Login;
use crate::domain::password::{InvalidPassword, NewPassword};
use crate::domain::password_hash::PasswordHash;
use crate::domain::problem::Problem;
use crate::domain::user::UserId;
use crate::http::error::ApiError;
use crate::http::json_body::{JsonObject, both};
use crate::http::openapi::{Operation, RequestBody};
use crate::state::AppState;
use crate::telemetry::audit::{AuditEvent, Subject};
use crate::telemetry::request_info::RequestInfo;
use crate::users::AddUserError;

/// Login and password of the new account.
#[derive(Debug)]
pub(crate) struct Registration {
    login: Login,
    password: NewPassword,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Registered")]
pub(crate) struct RegistrationResponse {
    id: UserId,
}

pub(crate) fn operation() -> Operation {
    Operation::new(
        "Register",
        "Creates an account. The password must not be a common password or the login.",
    )
    .request_body::<Registration>()
    .response(
        StatusCode::CREATED,
        "Registered",
        &RegistrationResponse { id: UserId(222) },
    )
    .errors([
        ApiError::LoginTaken,
        ApiError::queue_full_example(),
        ApiError::Unavailable,
    ])
}

impl RequestBody for Registration {
    fn schema() -> Value {
        json!({
            "type": "object",
            "required": ["login", "password"],
            "properties": {"login": Login::schema(), "password": NewPassword::schema()},
        })
    }

    fn example() -> Value {
        json!({"login": "alice", "password": "securepassword123"})
    }
}

pub(crate) async fn handle(
    State(state): State<AppState>,
    request: RequestInfo,
    registration: Registration,
) -> Result<(StatusCode, Json<RegistrationResponse>), ApiError> {
    let hasher = state.hasher.for_client(&request.client);
    let hash = hasher.hash(&registration.password).await?;
    let addition = add(state.clone(), request, registration.login, hash);
    let id = state.lifecycle.complete(addition).await?;
    Ok((StatusCode::CREATED, Json(RegistrationResponse { id })))
}

async fn add(
    state: AppState,
    request: RequestInfo,
    login: Login,
    hash: PasswordHash,
) -> Result<UserId, ApiError> {
    let id = match state.users.add(&login, &hash).await {
        Ok(id) => id,
        Err(AddUserError::LoginTaken) => return Err(ApiError::LoginTaken),
        Err(AddUserError::LoginNotStorable) => {
            let problem = Problem::invalid_value("login", "Login cannot be stored");
            return Err(ApiError::InvalidBody(vec![problem]));
        }
        Err(AddUserError::Unavailable(error)) => return Err(error.into()),
    };
    let subject = Subject::Account(id, &login);
    let recorded = state
        .audit
        .record(AuditEvent::Registered, subject, &request);
    if let Err(unrecorded) = recorded.await {
        state.users.delete(id).await?;
        return Err(unrecorded.into());
    }
    Ok(id)
}

impl<S: Sync> FromRequest<S> for Registration {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = JsonObject::from_request(request, state).await?;
        let login = body.string("login").and_then(|text| {
            Login::new(text).map_err(|reason| Problem::invalid_value("login", reason))
        });
        let password = body
            .string("password")
            .and_then(|text| NewPassword::new(text).map_err(invalid_password));
        let (login, password) = both(login, password)?;
        let password = password
            .distinct_from(&login)
            .map_err(|reason| ApiError::InvalidBody(vec![invalid_password(reason)]))?;
        Ok(Self { login, password })
    }
}

fn invalid_password(reason: InvalidPassword) -> Problem {
    Problem::invalid_value("password", reason)
}
