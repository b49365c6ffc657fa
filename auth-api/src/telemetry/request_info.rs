//! Description of a request for logs, audit events and session lists, read from the headers that
//! the gateway sets.

use std::borrow::Cow;
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
        Ok(Self::of(&parts.headers))
    }
}

impl RequestInfo {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        Self {
            request_id: request_id(headers).into_owned(),
            client: client_info(headers),
        }
    }
}

/// Returns the request id that the gateway assigned, or an empty string.
pub(crate) fn request_id(headers: &HeaderMap) -> Cow<'_, str> {
    last_line(headers, "x-request-id")
}

/// Returns the last address of `X-Forwarded-For`, which is the one that the gateway appended, or an empty string.
///
/// The lines of the header form one list (RFC 9110, section 5.3), whose empty elements are skipped. It is
/// read as bytes: what a client sent before cannot hide the address.
pub(crate) fn client_address(headers: &HeaderMap) -> Cow<'_, str> {
    headers
        .get_all("x-forwarded-for")
        .iter()
        .rev()
        .flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .find(|element| !element.is_empty())
        .map_or(Cow::Borrowed(""), String::from_utf8_lossy)
}

fn client_info(headers: &HeaderMap) -> ClientInfo {
    let user_agent = last_line(headers, "user-agent");
    let end = (0..=MAX_USER_AGENT_BYTES.min(user_agent.len()))
        .rev()
        .find(|end| user_agent.is_char_boundary(*end))
        .unwrap_or(0);
    ClientInfo {
        address: client_address(headers).into_owned(),
        user_agent: user_agent[..end].to_owned(),
    }
}

/// Returns the last line of a header, which is the gateway's where a client sent lines of the same name.
fn last_line<'a>(headers: &'a HeaderMap, name: &str) -> Cow<'a, str> {
    headers
        .get_all(name)
        .iter()
        .next_back()
        .map_or(Cow::Borrowed(""), |line| {
            String::from_utf8_lossy(line.as_bytes())
        })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn address(lines: &[&[u8]]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", HeaderValue::from_bytes(line).unwrap());
        }
        client_address(&headers).into_owned()
    }

    #[test]
    fn the_address_is_the_last_element_over_all_lines() {
        for (lines, expected) in [
            (&[][..], ""),
            (&[&b""[..]], ""),
            (&[b"192.0.2.1"], "192.0.2.1"),
            (&[b"6.6.6.6, 192.0.2.1"], "192.0.2.1"),
            (&[b"6.6.6.6", b"192.0.2.1"], "192.0.2.1"),
            (&[b"\xff", b"6.6.6.6, \xff,192.0.2.1"], "192.0.2.1"),
            (&[b"6.6.6.6, 192.0.2.1 , ,", b" , "], "192.0.2.1"),
        ] {
            assert_eq!(address(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn a_user_agent_that_is_not_ascii_is_kept() {
        let mut headers = HeaderMap::new();
        headers.append("user-agent", HeaderValue::from_static("first"));
        let second = HeaderValue::from_bytes("Gerät\u{fc}".as_bytes()).unwrap();
        headers.append("user-agent", second);
        assert_eq!(client_info(&headers).user_agent, "Gerät\u{fc}");
    }
}
