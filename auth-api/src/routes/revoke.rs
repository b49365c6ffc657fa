//! `POST /oauth/revoke`: ends the session of a token for a registered client (RFC 7009).
//!
//! The session ends as by a logout: before the response, on every replica and at every gateway. A used refresh token
//! ends its session too (section 2.1 permits it): the client that presents it means that session, and one that a thief has used
//! must not survive the owner's wish to end it. An access token that has expired is dead already, and ends nothing.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::oauth_client::OAuthClient;
use crate::domain::principal::Principal;
use crate::domain::session::EndOutcome;
use crate::http::oauth_error::OAuthError;
use crate::http::openapi::Operation;
use crate::http::token_request::{self, TokenRequest};
use crate::state::AppState;
use crate::telemetry::audit::{AuditEvent, Subject};
use crate::telemetry::request_info::RequestInfo;

/// Response without members: it is the same whether or not there was something to revoke.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Revoked {}

pub(crate) fn operation() -> Operation {
    Operation::new(
        "Revoke a token",
        "Ends the session of an access token or a refresh token, also of a refresh token that was used, for a \
         registered client (RFC 7009). All tokens of the session are invalid before the response. An unknown token is \
         no error.",
    )
    .client()
    .form_body::<TokenRequest>()
    .response(StatusCode::OK, "The token is not valid any more", &Revoked {})
    .errors(token_request::possible_errors().map(Into::into))
}

pub(crate) async fn handle(
    State(state): State<AppState>,
    TokenRequest {
        client,
        request,
        token,
    }: TokenRequest,
) -> Result<Json<Revoked>, OAuthError> {
    let principal = match state.refresh_tokens.decode(&token) {
        Some(token) => Some(token.principal),
        None => state.access_tokens.verify(&token).ok(),
    };
    if let Some(principal) = principal {
        let end = end_session(state.clone(), request, client, principal);
        state.lifecycle.complete(end).await?;
    }
    Ok(Json(Revoked {}))
}

async fn end_session(
    state: AppState,
    request: RequestInfo,
    client: OAuthClient,
    principal: Principal,
) -> Result<(), OAuthError> {
    if state.sessions.end(principal).await? == EndOutcome::Ended {
        state.metrics.sessions_ended.inc();
        let subject = Subject::UserOfToken(principal.user, &client);
        let recorded = state
            .audit
            .record(AuditEvent::TokenRevoked, subject, &request);
        recorded.await?;
    }
    Ok(())
}
