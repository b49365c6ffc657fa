//! `GET /.well-known/jwks.json`: public keys that verify access tokens (RFC 7517), for other services.

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::IntoResponse;
use serde_json::json;

use crate::http::openapi::Operation;
use crate::state::AppState;

const JWK_SET: &str = "application/jwk-set+json";
/// A key is published before tokens are signed with it: for longer than this, by the procedure of a rotation.
const PUBLIC_FOR_FIVE_MINUTES: HeaderValue = HeaderValue::from_static("public, max-age=300");

pub(crate) fn operation() -> Operation {
    let example = json!({"keys": [{
        "kty": "OKP",
        "crv": "Ed25519",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
        "alg": "EdDSA",
        "use": "sig",
    }]});
    Operation::new(
        "Get the public keys",
        "Returns the keys that access tokens are verified with, as a JWK set. It is empty if tokens are signed \
         with a secret key.",
    )
    .response_of_type(StatusCode::OK, JWK_SET, "The keys", &example)
}

pub(crate) async fn handle(State(state): State<AppState>) -> impl IntoResponse {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(JWK_SET)),
        (CACHE_CONTROL, PUBLIC_FOR_FIVE_MINUTES),
    ];
    (headers, state.access_tokens.jwk_set().to_string())
}
