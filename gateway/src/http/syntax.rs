//! Syntax that both versions of HTTP share: request targets, authorities, tokens, lengths.

use crate::http::message::RequestError;

/// Maximum number of headers of a message.
pub(crate) const MAX_HEADERS: usize = 100;
/// Maximum length of a request target in bytes.
pub(crate) const MAX_TARGET_BYTES: usize = 8 * 1024;
/// Maximum length of a host name in bytes (RFC 1035, section 2.3.4).
const MAX_HOST_BYTES: usize = 255;
const MAX_PORT_DIGITS: usize = 5;

/// Checks that a target can be written into a request line (RFC 9112, section 3.2).
///
/// # Errors
/// Returns an error if the target is too long, empty, or has a byte that is no part of a URI.
pub(crate) fn check_target(target: &[u8]) -> Result<(), RequestError> {
    if target.len() > MAX_TARGET_BYTES {
        return Err(RequestError::TargetTooLong);
    }
    let is_allowed = |byte: &u8| byte.is_ascii_graphic() && *byte != b'#';
    if target.is_empty() || !target.iter().all(is_allowed) {
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
/// are rejected.
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
    let is_host_byte = |byte: &u8| match byte {
        b':' => is_ipv6,
        b'-' | b'.' | b'_' | b'~' => true,
        _ => byte.is_ascii_alphanumeric(),
    };
    let is_port_valid = match port {
        [] => true,
        [b':', digits @ ..] => {
            digits.len() <= MAX_PORT_DIGITS && digits.iter().all(u8::is_ascii_digit)
        }
        _ => false,
    };
    !host.is_empty()
        && host.len() <= MAX_HOST_BYTES
        && host.iter().all(is_host_byte)
        && is_port_valid
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
