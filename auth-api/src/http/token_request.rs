//! Extractor of a request of an OAuth client about a token: introspection (RFC 7662, section 2.1) and revocation
//! (RFC 7009, section 2.1) have the same one.
//!
//! The client is authenticated by Basic, with id and secret form-encoded, or by `client_id` and `client_secret` in
//! the form (RFC 6749, section 2.3.1). A request with both could be read as one of two clients, and is rejected.

use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::body::{self, BodyError};
use super::form::{self, Form, InvalidForm};
use super::oauth_error::{InvalidOAuthRequest, OAuthError};
use super::openapi::RequestBody;
use crate::authentication::oauth_client::ClientCredentials;
use crate::domain::oauth_client::OAuthClient;
use crate::state::AppState;
use crate::telemetry::request_info::RequestInfo;
use crate::throttle::{FAILURE_WINDOW, LockedOut};

/// Token that an authenticated client presents. `token_type_hint` is not read: tokens of one kind cannot be taken for
/// those of another.
pub(crate) struct TokenRequest {
    pub(crate) client: OAuthClient,
    pub(crate) request: RequestInfo,
    pub(crate) token: String,
}

impl FromRequest<AppState> for TokenRequest {
    type Rejection = OAuthError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, OAuthError> {
        let (parts, body) = request.into_parts();
        let body = body::read(body).await?;
        if body::media_type(&parts.headers).as_deref() != Some(form::MEDIA_TYPE) {
            return Err(InvalidOAuthRequest::NotAForm.into());
        }
        let mut form = Form::parse(&body)?;
        let credentials = credentials(&parts.headers, &mut form)?;
        let request = RequestInfo::of(&parts.headers);
        let client = credentials.authenticate(state, &request).await?;
        let token = form.take("token");
        Ok(Self {
            client,
            request,
            token: token.ok_or(InvalidOAuthRequest::TokenMissing)?,
        })
    }
}

impl RequestBody for TokenRequest {
    fn schema() -> Value {
        json!({
            "type": "object",
            "required": ["token"],
            "properties": {
                "token": {"type": "string", "minLength": 1, "description": "Access token or refresh token."},
                "token_type_hint": {"type": "string", "description": "Has no effect."},
                "client_id": {"type": "string", "description": "In place of Basic authentication."},
                "client_secret": {"type": "string", "description": "In place of Basic authentication."},
            },
        })
    }

    fn example() -> Value {
        json!({"token": "eyJhbGciOiJFZERTQSIsInR5cCI6ImF0K2p3dCJ9.…"})
    }
}

/// Returns the errors that any such request can produce, for the OpenAPI document.
pub(crate) fn possible_errors() -> [OAuthError; 10] {
    let retry_after = FAILURE_WINDOW;
    [
        InvalidOAuthRequest::NotAForm.into(),
        InvalidForm::Malformed.into(),
        InvalidForm::RepeatedParameter.into(),
        InvalidOAuthRequest::TokenMissing.into(),
        InvalidOAuthRequest::MultipleAuthenticationMethods.into(),
        BodyError::TooLarge.into(),
        BodyError::Timeout.into(),
        OAuthError::InvalidClient,
        OAuthError::LockedOut(LockedOut { retry_after }),
        OAuthError::Unavailable,
    ]
}

/// Returns the credentials of a request, by whichever method it has them.
fn credentials(headers: &HeaderMap, form: &mut Form) -> Result<ClientCredentials, OAuthError> {
    let mut lines = headers.get_all(AUTHORIZATION).iter();
    let (line, further_line) = (lines.next(), lines.next());
    let (id, secret) = (form.take("client_id"), form.take("client_secret"));
    let Some(line) = line else {
        let (id, secret) = id.zip(secret).ok_or(OAuthError::InvalidClient)?;
        return Ok(ClientCredentials::presented(&id, secret));
    };
    if further_line.is_some() || id.is_some() || secret.is_some() {
        return Err(InvalidOAuthRequest::MultipleAuthenticationMethods.into());
    }
    basic_credentials(line.as_bytes()).ok_or(OAuthError::InvalidClient)
}

/// Reads Basic authentication. Returns `None` for another scheme and for what is malformed.
fn basic_credentials(authorization: &[u8]) -> Option<ClientCredentials> {
    let text = str::from_utf8(authorization).ok()?;
    let (scheme, encoded) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("Basic") {
        return None;
    }
    let pair = BASE64_STANDARD.decode(encoded.trim()).ok()?;
    let mut parts = pair.splitn(2, |byte| *byte == b':');
    let id = form::decode(parts.next()?)?;
    let secret = form::decode(parts.next()?)?;
    Some(ClientCredentials::presented(&id, secret))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn is_basic(text: &str) -> bool {
        basic_credentials(text.as_bytes()).is_some()
    }

    #[test]
    fn only_well_formed_basic_authentication_is_read() {
        let encoded = BASE64_STANDARD.encode("id:secret");
        for valid in [
            format!("Basic {encoded}"),
            format!("bASIC   {encoded} "),
            format!("Basic {}", BASE64_STANDARD.encode(":")),
            format!("Basic {}", BASE64_STANDARD.encode("a:b:c%3A")),
        ] {
            assert!(is_basic(&valid), "{valid}");
        }
        for invalid in [
            String::new(),
            "Basic".to_owned(),
            "Basic ".to_owned(),
            format!("Bearer {encoded}"),
            format!("Basic:{encoded}"),
            format!("Basic {encoded}="),
            format!("Basic {encoded} {encoded}"),
            format!("Basic {}", BASE64_STANDARD.encode("no colon")),
            format!("Basic {}", BASE64_STANDARD.encode("a:%")),
            format!("Basic {}", BASE64_STANDARD.encode(b"\xff:a")),
        ] {
            assert!(!is_basic(&invalid), "{invalid}");
        }
    }

    #[test]
    fn a_request_has_one_method_of_authentication() {
        let basic = HeaderValue::from_static("Basic YTpi");
        let result = |headers: &[&HeaderValue], form: &str| {
            let headers = headers
                .iter()
                .map(|value| (AUTHORIZATION, (*value).clone()));
            let mut form = Form::parse(form.as_bytes()).unwrap();
            match credentials(&headers.collect(), &mut form) {
                Ok(_) => "ok",
                Err(OAuthError::InvalidClient) => "invalid_client",
                Err(_) => "invalid_request",
            }
        };
        for (headers, form, expected) in [
            (&[&basic][..], "token=x", "ok"),
            (&[], "client_id=a&client_secret=b", "ok"),
            (&[&basic], "client_id=&client_secret=", "ok"),
            (&[], "", "invalid_client"),
            (&[], "client_id=a", "invalid_client"),
            (&[], "client_secret=b", "invalid_client"),
            (&[&basic], "client_id=a", "invalid_request"),
            (&[&basic], "client_secret=b", "invalid_request"),
            (&[&basic, &basic], "", "invalid_request"),
        ] {
            assert_eq!(result(headers, form), expected, "{headers:?} {form}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parser_panic(bytes: Vec<u8>) {
            let _ = basic_credentials(&bytes);
            let basic = format!("Basic {}", BASE64_STANDARD.encode(&bytes));
            let _ = basic_credentials(basic.as_bytes());
        }
    }
}
