//! `/api/verify`: tells another proxy who sent a request, for nginx's `auth_request`, Caddy's `forward_auth`,
//! Traefik's `ForwardAuth` and Envoy's `ext_authz`.
//!
//! These ask with the request's own `Authorization` header before they forward it: with GET, or with the method
//! and the path of the request appended. So any method and any path below are accepted.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::domain::access_token::InvalidAccessToken;
use crate::http::bearer::{self, Authenticated};
use crate::http::error::ApiError;
use crate::http::openapi::Operation;

const USER_ID: HeaderName = HeaderName::from_static("x-user-id");
const USER_LOGIN: HeaderName = HeaderName::from_static("x-user-login");
const SESSION_ID: HeaderName = HeaderName::from_static("x-session-id");

pub(crate) fn operation() -> Operation {
    Operation::new(
        "Verify a token for a proxy",
        "Returns the identity of the token in headers: `X-User-Id`, `X-User-Login` (percent-encoded UTF-8) and \
         `X-Session-Id`. Any other method and any path below this one are accepted too.",
    )
    .bearer()
    .empty_response(
        StatusCode::OK,
        "The token is valid and its session active",
        &[USER_ID, USER_LOGIN, SESSION_ID],
    )
    .errors(bearer::possible_errors().into_iter().map(as_unauthorized))
}

pub(crate) async fn handle(
    authenticated: Result<Authenticated, ApiError>,
) -> Result<HeaderMap, ApiError> {
    let Authenticated { principal, account } = authenticated.map_err(as_unauthorized)?;
    let login = percent_encode(&account.profile.login);
    let mut headers = HeaderMap::new();
    headers.insert(USER_ID, principal.user.0.into());
    headers.insert(USER_LOGIN, ascii(&login));
    headers.insert(SESSION_ID, ascii(&principal.session.to_string()));
    Ok(headers)
}

/// Proxies understand 401 as "not authenticated", and 404 as a failure of this service.
fn as_unauthorized(error: ApiError) -> ApiError {
    match error {
        ApiError::UserNotFound => InvalidAccessToken::SessionNotFound.into(),
        error => error,
    }
}

fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("visible ASCII is a valid header value")
}

/// Encodes all but the unreserved characters (RFC 3986, section 2.3), so that a login has one form in every
/// header parser.
fn percent_encode(text: &str) -> String {
    use std::fmt::Write;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("writing to a String succeeds");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_encoded_as_utf8_in_ascii() {
        for (login, encoded) in [
            ("alice-1._~", "alice-1._~"),
            ("Jürgen Meier", "J%C3%BCrgen%20Meier"),
            ("a%b,c;d\"", "a%25b%2Cc%3Bd%22"),
        ] {
            assert_eq!(percent_encode(login), encoded);
        }
    }
}
