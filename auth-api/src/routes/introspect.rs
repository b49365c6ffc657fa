//! `POST /oauth/introspect`: tells a registered client whether a token is active, and whose it is (RFC 7662).
//!
//! An access token is active exactly if `/api/verify` accepts it, a refresh token if it has not been used and
//! `/api/refresh` would exchange it. Introspection neither uses a refresh token up nor counts as its reuse.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::principal::Principal;
use crate::domain::refresh_token::RefreshToken;
use crate::domain::session::RefreshTokenQuery;
use crate::domain::user::AccountStatus;
use crate::http::bearer::Authenticated;
use crate::http::oauth_error::OAuthError;
use crate::http::openapi::Operation;
use crate::http::token_request::{self, TokenRequest};
use crate::state::AppState;
use crate::store::unavailable::Unavailable;

/// `token_type` of access tokens (RFC 6749, section 5.1).
const BEARER: &str = "Bearer";
/// `token_type` of refresh tokens, by which a service tells that one was sent to it in place of an access token.
const REFRESH_TOKEN: &str = "refresh_token";

/// Response about a token (RFC 7662, section 2.2). Nothing but `active` is known of an inactive one.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(crate) struct Introspection {
    active: bool,
    #[serde(flatten)]
    token: Option<ActiveToken>,
}

/// Claims and session of an active token.
#[derive(Debug, Serialize, JsonSchema)]
struct ActiveToken {
    /// Id of the user, whatever `sub` of the token itself is.
    sub: String,
    /// Login.
    username: String,
    /// Unix time in seconds, like `iat`.
    exp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iat: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    aud: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<String>,
    /// `Bearer` or `refresh_token`.
    token_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    jti: Option<String>,
    /// Id of the session.
    sid: String,
}

pub(crate) fn operation() -> Operation {
    let example = Introspection::from(Some(ActiveToken {
        sub: "222".to_owned(),
        username: "alice".to_owned(),
        exp: 1_795_528_220,
        iat: Some(1_795_441_820),
        iss: Some("auth-api".to_owned()),
        aud: vec!["auth-api".to_owned()],
        client_id: Some("auth-api".to_owned()),
        token_type: BEARER,
        jti: Some("d1a2a3b0a5a14e5f9b0f6b2f6d1f0c11".to_owned()),
        sid: "0199aa6e5b5c4d5f8e7b4d4a5a3b2c1d".to_owned(),
    }));
    Operation::new(
        "Introspect a token",
        "Tells a registered client whether an access token or a refresh token is active, and whose it is (RFC 7662). \
         A token that is not active is `{\"active\": false}`, whatever the reason. `token_type` tells an access \
         token (`Bearer`) from a refresh token (`refresh_token`).",
    )
    .client()
    .form_body::<TokenRequest>()
    .response(StatusCode::OK, "Active or not", &example)
    .errors(token_request::possible_errors().map(Into::into))
}

pub(crate) async fn handle(
    State(state): State<AppState>,
    TokenRequest { token, .. }: TokenRequest,
) -> Result<Json<Introspection>, OAuthError> {
    let found = match state.refresh_tokens.decode(&token) {
        Some(token) => describe_refresh_token(&token, &state).await?,
        None => describe_access_token(&token, &state).await?,
    };
    let result = if found.is_some() {
        "active"
    } else {
        "inactive"
    };
    let introspections = &state.metrics.oauth.introspections;
    introspections.with_label_values(&[result]).inc();
    Ok(Json(found.into()))
}

/// Returns `None` if the token is not active.
async fn describe_access_token(
    token: &str,
    state: &AppState,
) -> Result<Option<ActiveToken>, Unavailable> {
    let Ok((principal, claims)) = state.access_tokens.verify_claims(token) else {
        return Ok(None);
    };
    let Ok(authenticated) = Authenticated::find(principal, state).await? else {
        return Ok(None);
    };
    let username = authenticated.account.profile.login;
    Ok(Some(ActiveToken {
        iat: claims.issued_at,
        iss: claims.issuer,
        aud: claims.audiences,
        client_id: claims.client_id,
        jti: claims.token_id,
        ..ActiveToken::new(principal, username, BEARER, claims.expires_at)
    }))
}

/// Returns `None` if the token is not active.
async fn describe_refresh_token(
    token: &RefreshToken,
    state: &AppState,
) -> Result<Option<ActiveToken>, Unavailable> {
    let principal = token.principal;
    let account = state.users.login_and_standing(principal.user).await?;
    let Some((login, standing)) =
        account.filter(|(_, standing)| standing.status == AccountStatus::Active)
    else {
        return Ok(None);
    };
    let query = RefreshTokenQuery {
        principal,
        presented: token.hash(),
        presented_generation: token.generation(),
        cutoff: standing.cutoff,
        policy: state.session_policy,
    };
    let validity = state.sessions.refresh_token_validity(&query).await?;
    Ok(validity.map(|validity| {
        let (username, exp) = (login.as_str().to_owned(), validity.expires_at.timestamp());
        ActiveToken {
            iat: validity.issued_at.map(|time| time.timestamp()),
            iss: Some(state.access_tokens.issuer().to_owned()),
            ..ActiveToken::new(principal, username, REFRESH_TOKEN, exp)
        }
    }))
}

impl ActiveToken {
    fn new(principal: Principal, username: String, token_type: &'static str, exp: i64) -> Self {
        Self {
            sub: principal.user.0.to_string(),
            username,
            exp,
            iat: None,
            iss: None,
            aud: Vec::new(),
            client_id: None,
            token_type,
            jti: None,
            sid: principal.session.to_string(),
        }
    }
}

impl From<Option<ActiveToken>> for Introspection {
    fn from(token: Option<ActiveToken>) -> Self {
        Self {
            active: token.is_some(),
            token,
        }
    }
}
