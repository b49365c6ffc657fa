//! Description of a request for logs, audit events and session lists, read from the headers that
//! the gateway sets.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;

use crate::domain::session::ClientInfo;

/// Bytes of a user agent that are kept: enough to recognise a device.
const MAX_USER_AGENT_BYTES: usize = 256;

/// Request id, as in all logs, and the client that sent the request.
#[derive(Debug, Clone)]
pub(crate) struct RequestInfo {
    pub(crate) request_id: String,
    pub(crate) client: ClientInfo,
}

impl<S: Sync> FromRequestParts<S> for RequestInfo {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self {
            request_id: request_id(&parts.headers).to_owned(),
            client: client_info(&parts.headers),
        })
    }
}

/// Returns the request id that the gateway assigned, or an empty string.
pub(crate) fn request_id(headers: &HeaderMap) -> &str {
    header(headers, "x-request-id")
}

/// Returns the last address of `X-Forwarded-For`, which is the one that the gateway appended.
pub(crate) fn client_address(headers: &HeaderMap) -> &str {
    header(headers, "x-forwarded-for")
        .rsplit(',')
        .next()
        .unwrap_or("")
        .trim()
}

fn client_info(headers: &HeaderMap) -> ClientInfo {
    let user_agent = header(headers, "user-agent");
    let end = (0..=MAX_USER_AGENT_BYTES.min(user_agent.len()))
        .rev()
        .find(|end| user_agent.is_char_boundary(*end))
        .unwrap_or(0);
    ClientInfo {
        address: client_address(headers).to_owned(),
        user_agent: user_agent[..end].to_owned(),
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("")
}
