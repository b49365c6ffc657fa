//! Request targets and the normalisation of their paths (RFC 3986, section 6.2.2).
//!
//! Invariant: all spellings of a path that a server may take for the same one have one normal form, which
//! patterns and quotas see. A path that servers interpret differently is rejected: it could match one pattern
//! here and name another resource upstream. That holds for an encoded slash too, which nginx and Envoy
//! forward: servers built on WSGI, ASGI or CGI decode it before they route.
//!
//! The forwarded path has the same segments, and its reserved characters are encoded where they were received
//! encoded: decoding them could change the resource (RFC 3986, section 2.2), and would break signatures over
//! the path (RFC 9421, section 2.2.6). Its normal form is the one that was matched.

use std::borrow::Cow;

use bytes::Bytes;
use thiserror::Error;

/// Reason why a path cannot be normalised. The texts are sent to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum PathError {
    #[error("The path must start with a slash")]
    NoLeadingSlash,
    #[error("The path has a character that must be percent-encoded")]
    UnencodedCharacter,
    #[error("The path has an invalid percent-encoding")]
    InvalidEncoding,
    #[error("The path has an encoded slash, backslash or null")]
    EncodedDelimiter,
    #[error("The path has a dot segment with parameters")]
    DotSegmentParameters,
}

/// Request target in origin form (RFC 9112, section 3.2.1): a path and an optional query, in ASCII.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestTarget {
    /// Target to be forwarded.
    text: Bytes,
    path_length: usize,
    /// Path as patterns and quotas see it, `None` if it is the one of `text`.
    matched_path: Option<String>,
}

impl RequestTarget {
    /// Creates a target from its received spelling, in origin or absolute form. `raw` must consist of
    /// printable ASCII characters.
    pub(crate) fn new(raw: Bytes) -> Self {
        let text = to_origin_form(raw);
        let path_length = memchr::memchr(b'?', &text).unwrap_or(text.len());
        Self {
            text,
            path_length,
            matched_path: None,
        }
    }

    /// Normalises the path; the query stays as it is.
    ///
    /// # Errors
    /// Returns an error if the path is ambiguous or malformed.
    pub(crate) fn normalise(&mut self) -> Result<(), PathError> {
        let (path, query) = self.text.split_at(self.path_length);
        if let Cow::Owned(matched_path) = normalise(path)? {
            let forwarded_path = remove_dot_segments(&decode(path, DecodedSet::Unreserved)?)?;
            self.path_length = forwarded_path.len();
            self.text = [forwarded_path.as_bytes(), query].concat().into();
            self.matched_path = (matched_path != forwarded_path).then_some(matched_path);
        }
        Ok(())
    }

    /// Returns the path as patterns and quotas see it.
    pub(crate) fn path(&self) -> &str {
        match &self.matched_path {
            Some(path) => path,
            None => str::from_utf8(&self.text[..self.path_length]).unwrap_or_default(),
        }
    }

    /// Returns path and query as they are forwarded.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.text
    }

    /// Returns path and query as they are forwarded without `prefix`, which is in normal form. `None` if the path
    /// does not begin with its segments.
    pub(crate) fn without_prefix(&self, prefix: &str) -> Option<StrippedTarget<'_>> {
        strip_segments(self.path(), prefix)?;
        let (path, query) = self.text.split_at(self.path_length);
        // The forwarded path has the same segments, though not necessarily the same encoding.
        let segments = prefix.bytes().filter(|byte| *byte == b'/').count();
        let rest = memchr::memchr_iter(b'/', path).nth(segments);
        let path = rest.map_or(&b"/"[..], |start| &path[start..]);
        Some(StrippedTarget { path, query })
    }
}

/// Request target without a prefix of its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StrippedTarget<'t> {
    pub(crate) path: &'t [u8],
    /// The query with its question mark, or nothing.
    pub(crate) query: &'t [u8],
}

/// Returns a path without a prefix of whole segments, `None` if it does not begin with it. Both are in normal form.
pub(crate) fn strip_segments<'p>(path: &'p str, prefix: &str) -> Option<&'p str> {
    match path.strip_prefix(prefix)? {
        "" => Some("/"),
        rest if rest.starts_with('/') => Some(rest),
        _ => None,
    }
}

/// Removes scheme and authority of a target in absolute form. The caller has checked that the
/// authority equals the `Host` header.
fn to_origin_form(target: Bytes) -> Bytes {
    if target.starts_with(b"/") {
        return target;
    }
    let Some(scheme_length) = memchr::memmem::find(&target, b"://") else {
        return target;
    };
    let rest = target.slice(scheme_length + 3..);
    match rest.iter().position(|byte| matches!(byte, b'/' | b'?')) {
        Some(start) if rest[start] == b'/' => rest.slice(start..),
        // An empty path is sent as a slash (RFC 9112, section 3.2.1).
        Some(start) => [b"/", &rest[start..]].concat().into(),
        None => Bytes::from_static(b"/"),
    }
}

/// Returns the normalised path: unreserved and other path characters are decoded, all others are
/// encoded with upper-case digits, empty segments and dot segments are removed, a trailing slash
/// stays. A path that is in normal form already is not copied.
///
/// # Errors
/// Returns an error if the path is ambiguous or malformed.
pub(crate) fn normalise(path: &[u8]) -> Result<Cow<'_, str>, PathError> {
    if path.first() != Some(&b'/') {
        return Err(PathError::NoLeadingSlash);
    }
    let text = std::str::from_utf8(path).map_err(|_| PathError::UnencodedCharacter)?;
    if is_normal(path) {
        return Ok(Cow::Borrowed(text));
    }
    let decoded = decode(path, DecodedSet::PathCharacters)?;
    Ok(Cow::Owned(remove_dot_segments(&decoded)?))
}

/// Returns true if a path has no percent-encoding, no empty segment, no segment that begins with a
/// dot, and no character that needs encoding. Such a path is in normal form; one pass decides it.
fn is_normal(path: &[u8]) -> bool {
    let mut previous = 0;
    for &byte in path {
        let is_segment_start = previous == b'/';
        if !PATH_CHARACTERS[usize::from(byte)]
            || (is_segment_start && (byte == b'/' || byte == b'.'))
        {
            return false;
        }
        previous = byte;
    }
    true
}

/// Characters that a path contains unencoded: `pchar` (RFC 3986, section 3.3), and `/`.
const PATH_CHARACTERS: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = b'!';
    while byte <= b'~' {
        table[byte as usize] =
            !is_tolerated_unencoded(byte) && !matches!(byte, b'%' | b'\\' | b'#' | b'?');
        byte += 1;
    }
    table
};

/// Returns true for characters that some clients send unencoded although RFC 3986 requires
/// encoding. All servers interpret them alike, so they are encoded instead of rejected.
const fn is_tolerated_unencoded(byte: u8) -> bool {
    matches!(
        byte,
        b'"' | b'<' | b'>' | b'[' | b']' | b'^' | b'`' | b'{' | b'|' | b'}'
    )
}

/// Characters that are decoded if they are percent-encoded. None of them separates segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DecodedSet {
    /// All that a path contains unencoded, for a path that is matched.
    PathCharacters,
    /// Those whose encoding makes no difference (RFC 3986, section 6.2.2.2), for a path that is forwarded.
    Unreserved,
}

impl DecodedSet {
    fn contains(self, byte: u8) -> bool {
        match self {
            Self::PathCharacters => PATH_CHARACTERS[usize::from(byte)],
            Self::Unreserved => {
                byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
            }
        }
    }
}

fn decode(path: &[u8], decoded_set: DecodedSet) -> Result<String, PathError> {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'%' {
            if PATH_CHARACTERS[usize::from(*byte)] {
                decoded.push(char::from(*byte));
            } else if is_tolerated_unencoded(*byte) {
                push_encoded(&mut decoded, *byte);
            } else {
                return Err(PathError::UnencodedCharacter);
            }
            continue;
        }
        let [high, low, after @ ..] = rest else {
            return Err(PathError::InvalidEncoding);
        };
        rest = after;
        let byte = hex_value(*high)? << 4 | hex_value(*low)?;
        match byte {
            0 | b'/' | b'\\' => return Err(PathError::EncodedDelimiter),
            _ if decoded_set.contains(byte) => decoded.push(char::from(byte)),
            _ => push_encoded(&mut decoded, byte),
        }
    }
    Ok(decoded)
}

fn push_encoded(path: &mut String, byte: u8) {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F',
    ];
    path.push('%');
    path.push(DIGITS[usize::from(byte >> 4)]);
    path.push(DIGITS[usize::from(byte & 0xf)]);
}

fn hex_value(digit: u8) -> Result<u8, PathError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(PathError::InvalidEncoding),
    }
}

/// Resolves dot segments (RFC 3986, section 5.2.4) and removes empty segments.
///
/// # Errors
/// Returns an error if a dot segment has parameters, as in `..;a=b`: servlet containers remove parameters before they
/// resolve the segment, and other servers take it for a name (CVE-2026-73551).
fn remove_dot_segments(path: &str) -> Result<String, PathError> {
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_in_slash = true;
    for segment in path.split('/') {
        ends_in_slash = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            _ if segment.starts_with(".;") || segment.starts_with("..;") => {
                return Err(PathError::DotSegmentParameters);
            }
            _ => segments.push(segment),
        }
    }
    let mut normalised = String::with_capacity(path.len());
    for segment in &segments {
        normalised.push('/');
        normalised.push_str(segment);
    }
    if ends_in_slash {
        normalised.push('/');
    }
    Ok(normalised)
}

/// Returns the segments of a path without their parameters (RFC 3986, section 3.3), and without those that are then
/// empty.
pub(crate) fn segments_without_parameters(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter_map(|segment| segment.split(';').next())
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn normalised(path: &str) -> Result<String, PathError> {
        normalise(path.as_bytes()).map(Cow::into_owned)
    }

    #[test]
    fn all_spellings_of_a_path_have_one_normal_form() {
        for spelling in [
            "/api/login",
            "/api//login",
            "//api/login",
            "/api/./login",
            "/api/%6cogin",
            "/api/%6Cogin",
            "/x/../api/login",
            "/../api/login",
            "/%2e%2e/api/login",
            "/api/x/%2E./login",
            "/./api/login",
        ] {
            assert_eq!(
                normalised(spelling).as_deref(),
                Ok("/api/login"),
                "{spelling}"
            );
        }
        for (spelling, normal_form) in [
            ("/", "/"),
            ("//", "/"),
            ("/..", "/"),
            ("/api/", "/api/"),
            ("/api/.", "/api/"),
            ("/api/x/..", "/api/"),
            ("/f%c3%bcr", "/f%C3%BCr"),
            ("/a%20b", "/a%20b"),
            ("/u/%40me", "/u/@me"),
            ("/a%3Bb%2Cc%3d%3A", "/a;b,c=:"),
            ("/a|b/{c}", "/a%7Cb/%7Bc%7D"),
            ("/a%7cb", "/a%7Cb"),
            ("/a%3Fb%23c%25", "/a%3Fb%23c%25"),
            ("/a.b/.c/..d", "/a.b/.c/..d"),
        ] {
            assert_eq!(
                normalised(spelling).as_deref(),
                Ok(normal_form),
                "{spelling}"
            );
        }
    }

    #[test]
    fn an_ambiguous_or_malformed_path_is_rejected() {
        for path in [
            "/a%2fb",
            "/a%5Cb",
            "/a%00",
            "/a\\b",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a b",
            "/a\tb",
            "/a#b",
            "",
            "api",
            "*",
            "/für",
            "/a/..;/b",
            "/a/.;x/b",
            "/..;a=b",
            "/a/%2e%2e;/b",
            "/a/..%3b/b",
        ] {
            assert!(normalised(path).is_err(), "{path}");
        }
    }

    fn target(raw: &str) -> Result<RequestTarget, PathError> {
        let mut target = RequestTarget::new(Bytes::copy_from_slice(raw.as_bytes()));
        target.normalise().map(|()| target)
    }

    #[test]
    fn reserved_characters_are_forwarded_as_they_were_received() {
        for (received, forwarded, matched) in [
            ("/f/a%3Bb.txt", "/f/a%3Bb.txt", "/f/a;b.txt"),
            ("/f/a;b.txt", "/f/a;b.txt", "/f/a;b.txt"),
            ("/a%2cb,c%3d=?q=%2c", "/a%2Cb,c%3D=?q=%2c", "/a,b,c=="),
            ("/u/%40me/%7euser", "/u/%40me/~user", "/u/@me/~user"),
            ("/x//%2E%2e/%61%3a", "/a%3A", "/a:"),
            ("/a|b%7Cc", "/a%7Cb%7Cc", "/a%7Cb%7Cc"),
            ("/%21?a", "/%21?a", "/!"),
        ] {
            let target = target(received).unwrap();
            let text = str::from_utf8(target.as_bytes()).unwrap();
            assert_eq!((text, target.path()), (forwarded, matched), "{received}");
        }
    }

    #[test]
    fn a_prefix_of_whole_segments_is_removed_from_the_forwarded_target() {
        let stripped = |received: &str, prefix: &str| {
            let target = target(received).unwrap();
            let stripped = target.without_prefix(prefix)?;
            Some(String::from_utf8([stripped.path, stripped.query].concat()).unwrap())
        };
        for (received, prefix, forwarded) in [
            ("/orders", "/orders", "/"),
            ("/orders/", "/orders", "/"),
            ("/orders?a=/b", "/orders", "/?a=/b"),
            ("/orders/1?a=/b", "/orders", "/1?a=/b"),
            ("/orders/1/", "/orders", "/1/"),
            ("/orders/orders/1", "/orders", "/orders/1"),
            ("/a/b/c%3Bd/e", "/a/b", "/c%3Bd/e"),
            ("/a%3Bb/c", "/a;b", "/c"),
            ("/x/..//%6Frders/./1", "/orders", "/1"),
            ("/f%c3%bcr/1", "/f%C3%BCr", "/1"),
        ] {
            let stripped = stripped(received, prefix);
            assert_eq!(stripped.as_deref(), Some(forwarded), "{received}");
        }
        for received in [
            "/ordersx",
            "/orders;a/1",
            "/order",
            "/",
            "/x/orders",
            "/Orders",
        ] {
            assert_eq!(stripped(received, "/orders"), None, "{received}");
        }
    }

    proptest! {
        #[test]
        fn a_stripped_path_has_the_normal_form_of_the_rest(
            path in "/([ab;.]|%[0-9A-F]{2}){0,4}(/([ab;@]|%3[AB]|//){0,4}){0,3}",
            prefix in "/[ab;]{1,3}",
        ) {
            if let Ok(target) = target(&path) {
                let rest = strip_segments(target.path(), &prefix);
                let stripped = target.without_prefix(&prefix);
                prop_assert_eq!(rest.is_some(), stripped.is_some());
                if let (Some(rest), Some(stripped)) = (rest, stripped) {
                    let forwarded = str::from_utf8(stripped.path).unwrap();
                    prop_assert_eq!(normalised(forwarded), Ok(rest.to_owned()));
                    prop_assert!(!forwarded.starts_with("//"));
                }
            }
        }

        #[test]
        fn the_forwarded_path_has_the_normal_form_that_was_matched(
            path in "/([a-z./%@|;]|%[0-9A-Fa-f]{2}|%2[eE]|//){0,15}"
        ) {
            if let Ok(once) = target(&path) {
                let forwarded = str::from_utf8(once.as_bytes()).unwrap();
                prop_assert_eq!(normalised(forwarded), Ok(once.path().to_owned()));
                let again = target(forwarded).unwrap();
                prop_assert_eq!(again.as_bytes(), once.as_bytes());
                prop_assert_eq!(once.path().matches('/').count(), forwarded.matches('/').count());
            }
        }

        #[test]
        fn normalisation_is_idempotent(path in "/[a-z./%0-9A-F@|;]{0,30}") {
            if let Ok(once) = normalised(&path) {
                prop_assert_eq!(normalised(&once), Ok(once.clone()));
                prop_assert!(!once.contains("//"));
                prop_assert!(!once.split('/').any(|segment| segment == "." || segment == ".."));
            }
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(path in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = normalise(&path);
        }
    }

    #[test]
    fn a_target_in_absolute_form_becomes_one_in_origin_form() {
        for (received, forwarded) in [
            ("http://a.example", "/"),
            ("http://a.example/", "/"),
            ("https://a.example:8443/b//c?d=/e", "/b/c?d=/e"),
            ("http://a.example?b=/c", "/?b=/c"),
        ] {
            let target = target(received).unwrap();
            assert_eq!(target.as_bytes(), forwarded.as_bytes(), "{received}");
        }
        for neither_form in ["*", "a.example:443", "a/b"] {
            let rejected = target(neither_form);
            assert_eq!(rejected, Err(PathError::NoLeadingSlash), "{neither_form}");
        }
    }

    #[test]
    fn segments_are_compared_without_parameters_and_empty_ones() {
        let names = |path| -> Vec<&str> { segments_without_parameters(path).collect() };
        assert_eq!(names("/metrics"), ["metrics"]);
        assert_eq!(names("/a;b=c/;d//e;/"), ["a", "e"]);
        assert!(names("/;a/").is_empty());
    }
}
