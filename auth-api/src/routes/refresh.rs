//! `POST /api/refresh`: exchanges a refresh token for new tokens.
//!
//! Each refresh token can be used once. Presenting one again is a retry as long as no successor of it
//! was used, and later within the grace period; else two parties hold the token, and its
//! session ends (RFC 9700, section 4.14.2).

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::domain::refresh_token::RefreshToken;
use crate::domain::session::{EndOutcome, Rotation, RotationOutcome};
use crate::domain::session_cutoff::SessionCutoff;
use crate::domain::user::AccountStatus;
use crate::http::error::ApiError;
use crate::http::json_body::JsonObject;
use crate::http::openapi::{Operation, RequestBody};
use crate::http::token_response::TokenResponse;
use crate::state::AppState;
use crate::telemetry::audit::AuditEvent;
use crate::telemetry::request_info::RequestInfo;

/// Text of a presented refresh token.
pub(crate) struct PresentedToken(String);

impl<S: Sync> FromRequest<S> for PresentedToken {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = JsonObject::from_request(request, state).await?;
        body.string("refresh_token")
            .map(|text| Self(text.to_owned()))
            .map_err(|problem| ApiError::InvalidBody(vec![problem]))
    }
}

pub(crate) fn operation() -> Operation {
    Operation::new(
        "Renew tokens",
        "Exchanges a refresh token for new tokens. A client that lost the response may repeat the request. \
         A token whose successor was used ends its session when it is used again.",
    )
    .request_body::<PresentedToken>()
    .response(StatusCode::OK, "Renewed", &TokenResponse::example())
    .errors([ApiError::InvalidRefreshToken, ApiError::Unavailable])
}

impl RequestBody for PresentedToken {
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
    State(state): State<AppState>,
    request: RequestInfo,
    PresentedToken(text): PresentedToken,
) -> Result<Json<TokenResponse>, ApiError> {
    let presented = state
        .refresh_tokens
        .decode(&text)
        .ok_or(ApiError::InvalidRefreshToken)?;
    let now = Utc::now();
    // Read before the rotation: if the store is unavailable, the token is not used up.
    let account = state
        .users
        .login_and_standing(presented.principal.user)
        .await?;
    let (login, standing) = account
        .filter(|(_, standing)| standing.status == AccountStatus::Active)
        .ok_or(ApiError::InvalidRefreshToken)?;
    let rotation = rotate(state.clone(), request, presented, standing.cutoff, now);
    let successor = state.lifecycle.complete(rotation).await?;
    state.metrics.refreshes.inc();
    Ok(TokenResponse::issue(&state, &login, &successor, now))
}

/// Returns the successor of the presented token.
async fn rotate(
    state: AppState,
    request: RequestInfo,
    presented: RefreshToken,
    cutoff: SessionCutoff,
    now: DateTime<Utc>,
) -> Result<RefreshToken, ApiError> {
    let principal = presented.principal;
    let successor = presented.successor();
    let rotation = Rotation {
        principal,
        presented: presented.hash(),
        presented_generation: presented.generation(),
        successor: successor.hash(),
        successor_generation: successor.generation(),
        sealed_successor: presented.seal_successor(&successor),
        cutoff,
        now,
        policy: state.session_policy,
    };
    match state.sessions.rotate(&rotation).await? {
        RotationOutcome::Rotated => Ok(successor),
        RotationOutcome::Retried(sealed) => Ok(sealed
            .into_iter()
            .fold(presented, |token, sealed| token.open_successor(sealed))),
        RotationOutcome::Reused => {
            if state.sessions.end(principal).await? == EndOutcome::Ended {
                state.metrics.sessions_ended.inc();
            }
            state
                .audit
                .record(AuditEvent::RefreshTokenReused, principal.user, &request)
                .await?;
            Err(ApiError::InvalidRefreshToken)
        }
        RotationOutcome::SessionNotFound => Err(ApiError::InvalidRefreshToken),
    }
}
