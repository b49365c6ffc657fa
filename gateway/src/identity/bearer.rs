//! Access token of a request (RFC 6750, section 2.1).

use http::HeaderMap;
use http::header::AUTHORIZATION;

/// Longest token that is accepted. Those of auth-api have about 400 bytes.
const MAX_TOKEN_BYTES: usize = 8 * 1024;
const SCHEME: &[u8] = b"Bearer";

/// Credentials of a request, as far as they concern the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Credentials<'r> {
    /// None, or those of another scheme, which are for the upstream.
    None,
    Token(&'r str),
    /// A token of the wrong form.
    Malformed,
    /// More than one `Authorization`: recipients would differ on which counts.
    Ambiguous,
}

/// Returns the credentials in `headers`.
pub(super) fn credentials(headers: &HeaderMap) -> Credentials<'_> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Credentials::None;
    };
    if values.next().is_some() {
        return Credentials::Ambiguous;
    }
    let Some((scheme, rest)) = value.as_bytes().split_at_checked(SCHEME.len()) else {
        return Credentials::None;
    };
    let token = rest.trim_ascii_start();
    if !scheme.eq_ignore_ascii_case(SCHEME) || !rest.starts_with(b" ") {
        return Credentials::None;
    }
    match str::from_utf8(token) {
        Ok(token) if token.len() <= MAX_TOKEN_BYTES && is_token(token) => Credentials::Token(token),
        _ => Credentials::Malformed,
    }
}

/// Returns whether a text has the form of a bearer token (`b64token`).
fn is_token(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    let is_allowed = |byte: u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/')
    };
    // Without an early end, which lets the compiler check several bytes at once.
    !body.is_empty() && body.bytes().fold(true, |all, byte| all & is_allowed(byte))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_bearer_token_is_taken_from_a_single_header() {
        let long = format!("Bearer {}", "a".repeat(MAX_TOKEN_BYTES + 1));
        for (value, expected) in [
            ("Bearer a.b-c_d==", Credentials::Token("a.b-c_d==")),
            ("bEARER  abc", Credentials::Token("abc")),
            ("Bearer", Credentials::None),
            ("Bearer ", Credentials::Malformed),
            ("Bearerabc", Credentials::None),
            ("Basic YTpi", Credentials::None),
            ("x", Credentials::None),
            ("Bearer a b", Credentials::Malformed),
            ("Bearer a,b", Credentials::Malformed),
            ("Bearer ==", Credentials::Malformed),
            ("Bearer \u{e9}", Credentials::Malformed),
            (&long, Credentials::Malformed),
        ] {
            let mut headers = HeaderMap::new();
            assert_eq!(credentials(&headers), Credentials::None);
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            headers.append(AUTHORIZATION, value);
            assert_eq!(credentials(&headers), expected, "{headers:?}");
            headers.append(AUTHORIZATION, HeaderValue::from_static("Basic YTpi"));
            assert_eq!(credentials(&headers), Credentials::Ambiguous);
        }
    }
}
