//! Syntax that both versions of HTTP share: request targets, authorities, tokens, lengths.

use std::net::Ipv6Addr;

use http::{HeaderName, Method};

use crate::http::message::RequestError;

/// Header of an upgrade to HTTP/2 (RFC 7540, section 3.2.1), which concerns one connection only.
pub(crate) const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Maximum number of headers of a message.
pub(crate) const MAX_HEADERS: usize = 100;
/// Maximum length of a method in bytes. The longest registered one, `UPDATEREDIRECTREF`, has 17.
const MAX_METHOD_BYTES: usize = 32;
/// Maximum length of a request target in bytes.
pub(crate) const MAX_TARGET_BYTES: usize = 8 * 1024;
/// Maximum length of a host name in bytes (RFC 1035, section 2.3.4).
const MAX_HOST_BYTES: usize = 255;

/// Bytes that a target may have before the query. They are those that the crate `http` accepts, which parses
/// the targets of HTTP/2: characters that need percent-encoding are rejected, except those that clients
/// often send as they are.
const PATH_BYTES: [bool; 256] = target_bytes(b"#?<>`");
/// Bytes that the query of a target may have.
const QUERY_BYTES: [bool; 256] = target_bytes(b"#\"<>");

/// Returns the table of printable ASCII characters without `excluded`.
const fn target_bytes(excluded: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = b'!';
    while byte <= b'~' {
        table[byte as usize] = true;
        byte += 1;
    }
    let mut index = 0;
    while index < excluded.len() {
        table[excluded[index] as usize] = false;
        index += 1;
    }
    table
}

/// Checks that a method is one that the gateway forwards.
///
/// # Errors
/// Returns an error for TRACE, which would disclose headers that the gateway adds, for CONNECT, since the
/// gateway is no forward proxy, and for methods that are too long.
pub(crate) fn check_method(method: &Method) -> Result<(), RequestError> {
    if matches!(*method, Method::TRACE | Method::CONNECT) {
        Err(RequestError::Method)
    } else if method.as_str().len() > MAX_METHOD_BYTES {
        Err(RequestError::MethodTooLong)
    } else {
        Ok(())
    }
}

/// Returns the placeholder for the method of a request that could not be parsed, in logs.
pub(crate) fn unknown_method() -> Method {
    Method::from_bytes(b"-").expect("a dash is a token")
}

/// Returns a target without its fragment, which is no part of it (RFC 3986, section 3.5). The crate `http`
/// removes it from the targets of HTTP/2.
pub(crate) fn without_fragment(target: &[u8]) -> &[u8] {
    match memchr::memchr(b'#', target) {
        Some(end) => &target[..end],
        None => target,
    }
}

/// Checks that a target without fragment can be written into a request line (RFC 9112, section 3.2). The
/// verdict is the same for both versions of HTTP.
///
/// # Errors
/// Returns an error if the target is too long, empty, or has a byte that is no part of a URI.
pub(crate) fn check_target(target: &[u8]) -> Result<(), RequestError> {
    if target.len() > MAX_TARGET_BYTES {
        return Err(RequestError::TargetTooLong);
    }
    let path_length = memchr::memchr(b'?', target).unwrap_or(target.len());
    let (path, query) = target.split_at(path_length);
    let consists_of =
        |part: &[u8], table: &[bool; 256]| part.iter().all(|byte| table[usize::from(*byte)]);
    if target.is_empty() || !consists_of(path, &PATH_BYTES) || !consists_of(query, &QUERY_BYTES) {
        return Err(RequestError::Target);
    }
    Ok(())
}

/// Returns whether a byte is whitespace that may surround a header value (RFC 9110, section 5.6.3).
pub(crate) fn is_whitespace(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// Returns whether a byte may occur in a header value or a chunk extension: no control character but
/// the horizontal tab (RFC 9110, section 5.5).
pub(crate) fn is_header_value_byte(byte: u8) -> bool {
    byte == b'\t' || byte >= b' ' && byte != 0x7f
}

/// Parses the value of `Content-Length`: digits and nothing else (RFC 9110, section 8.6).
pub(crate) fn parse_content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(value).ok()?.parse().ok()
}

/// Returns whether `text` is a host with or without a port. User information, whitespace and lists
/// are rejected, and brackets around anything but an IPv6 address.
pub(crate) fn is_authority(text: &[u8]) -> bool {
    let is_ipv6 = text.first() == Some(&b'[');
    let (host, port) = if is_ipv6 {
        match text.iter().position(|byte| *byte == b']') {
            Some(end) => (&text[1..end], &text[end + 1..]),
            None => return false,
        }
    } else {
        let end = text.iter().position(|byte| *byte == b':');
        text.split_at(end.unwrap_or(text.len()))
    };
    let is_host_byte =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    let is_host_valid = if is_ipv6 {
        str::from_utf8(host).is_ok_and(|host| host.parse::<Ipv6Addr>().is_ok())
    } else {
        host.iter().all(is_host_byte)
    };
    let is_port_valid = match port {
        [] => true,
        [b':', digits @ ..] => is_port(digits),
        _ => false,
    };
    !host.is_empty() && host.len() <= MAX_HOST_BYTES && is_host_valid && is_port_valid
}

/// Returns whether digits are a port, which may be empty (RFC 3986, section 3.2.3).
fn is_port(digits: &[u8]) -> bool {
    let append = |port: u16, digit: &u8| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        port.checked_mul(10)?.checked_add(digit.into())
    };
    digits.iter().try_fold(0, append).is_some()
}

/// Returns an authority without its port. An IPv6 address keeps its brackets.
pub(crate) fn without_port(authority: &str) -> &str {
    let end = if authority.starts_with('[') {
        authority.find(']').map(|bracket| bracket + 1)
    } else {
        authority.bytes().position(|byte| byte == b':')
    };
    &authority[..end.unwrap_or(authority.len())]
}

/// Returns the host of an authority as it is compared: without port, without the brackets of an IPv6 address,
/// and without the dot that ends a fully qualified name (RFC 3986, section 3.2.2).
pub(crate) fn host_name(authority: &str) -> &str {
    let host = without_port(authority);
    let address = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    address.unwrap_or_else(|| host.strip_suffix('.').unwrap_or(host))
}

/// Returns whether a byte may occur in a token, such as a header name (RFC 9110, section 5.6.2). It is
/// a table lookup because every byte of every header name is checked.
pub(crate) fn is_token_byte(byte: u8) -> bool {
    const TABLE: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0_u8;
        while byte < 0x80 {
            table[byte as usize] = match byte {
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'
                | b'_' | b'`' | b'|' | b'~' => true,
                other => other.is_ascii_alphanumeric(),
            };
            byte += 1;
        }
        table
    };
    TABLE[usize::from(byte)]
}

#[cfg(test)]
mod tests {
    use http::uri::PathAndQuery;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn targets_have_the_same_verdict_as_in_http_2(target in "/[!-~\u{e4}]{0,20}") {
            let in_http_2 = PathAndQuery::try_from(target.as_str());
            let in_http_2 = in_http_2.ok().filter(|target| target.as_str().is_ascii());
            let target = without_fragment(target.as_bytes());
            let verdict = check_target(target);
            prop_assert_eq!(verdict.is_ok(), in_http_2.is_some());
            if let Some(in_http_2) = in_http_2 {
                prop_assert_eq!(target, in_http_2.as_str().as_bytes());
            }
        }
    }

    #[test]
    fn an_authority_has_a_valid_host_and_port() {
        for valid in [
            "a",
            "a.",
            "a:0",
            "a:65535",
            "a:",
            "[::1]",
            "[::1]:443",
            "a_b",
        ] {
            assert!(is_authority(valid.as_bytes()), "{valid}");
        }
        for invalid in [
            "",
            ":1",
            "a:65536",
            "a:99999",
            "a:+1",
            "a:1:1",
            "a:655360",
            "a:1a",
            "a:/",
            "u@a",
            "[::1",
            "a b",
            "[]",
            "[a]",
            "[:::1]",
            "[1.2.3.4]",
            "[::1%1]",
            "[v1.a]",
        ] {
            assert!(!is_authority(invalid.as_bytes()), "{invalid}");
        }
    }

    #[test]
    fn hosts_are_compared_without_port_brackets_and_final_dot() {
        for (authority, without_port_text, name) in [
            ("a.example", "a.example", "a.example"),
            ("a.example.", "a.example.", "a.example"),
            ("a.example.:443", "a.example.", "a.example"),
            ("192.0.2.1:443", "192.0.2.1", "192.0.2.1"),
            ("[2001:db8::1]:443", "[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]", "[2001:db8::1]", "2001:db8::1"),
        ] {
            assert_eq!(without_port(authority), without_port_text);
            assert_eq!(host_name(authority), name);
        }
    }
}
