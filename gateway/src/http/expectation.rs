//! `Expect` (RFC 9110, section 10.1.1). Servers disagree on values other than a lone `100-continue`, and on the
//! header in requests that cannot have an expectation: a server that waits for no body, or for one that does not
//! come, takes the next bytes of the connection for another request (CVE-2025-32094).

use http::header::EXPECT;
use http::{HeaderMap, Version};

use crate::http::message::{Framing, RequestError};

/// The only expectation that is defined.
const CONTINUE: &[u8] = b"100-continue";

/// Checks the expectation of a request, and removes one that has no effect: a client of HTTP/1.0 cannot have any,
/// and a request without a body has none to hold back.
///
/// # Errors
/// Returns an error for any other expectation than `100-continue`, and for more than one.
pub(crate) fn check_expectation(
    headers: &mut HeaderMap,
    version: Version,
    framing: Framing,
) -> Result<(), RequestError> {
    let mut expectations = headers.get_all(EXPECT).iter();
    let Some(first) = expectations.next() else {
        return Ok(());
    };
    if expectations.next().is_some() || !first.as_bytes().eq_ignore_ascii_case(CONTINUE) {
        return Err(RequestError::Expectation);
    }
    if version == Version::HTTP_10 || framing.is_empty() {
        headers.remove(EXPECT);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn check(values: &[&'static str], version: Version, framing: Framing) -> Option<usize> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(EXPECT, HeaderValue::from_static(value));
        }
        check_expectation(&mut headers, version, framing).ok()?;
        Some(headers.len())
    }

    #[test]
    fn only_a_lone_100_continue_of_a_request_with_a_body_is_forwarded() {
        let (length, version) = (Framing::Length(3), Version::HTTP_11);
        assert_eq!(check(&[], version, length), Some(0));
        assert_eq!(check(&["100-continue"], version, length), Some(1));
        assert_eq!(
            check(&["100-Continue"], Version::HTTP_2, Framing::Chunked),
            Some(1)
        );
        assert_eq!(check(&["100-continue"], Version::HTTP_10, length), Some(0));
        assert_eq!(check(&["100-continue"], version, Framing::Empty), Some(0));
        assert_eq!(
            check(&["100-continue"], version, Framing::Length(0)),
            Some(0)
        );
        for values in [
            &["y 100-continue"][..],
            &["100-continue, 100-continue"],
            &["100-continue", "100-continue"],
            &["100-continue;q=1"],
            &["other"],
            &[""],
        ] {
            assert_eq!(check(values, version, length), None, "{values:?}");
            assert_eq!(
                check(values, Version::HTTP_10, Framing::Empty),
                None,
                "{values:?}"
            );
        }
    }
}
