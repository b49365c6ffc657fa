//! One reading of a path: normalise it or refuse it.
//!
//! Patterns, quotas and the back end all see the same spelling, so that none of them can be told
//! another path than the rest (RFC 3986, section 6.2.2). What has two readings is refused.

use std::borrow::Cow;

use bytes::Bytes;
use thiserror::Error;

/// Why a request target has no single reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Ambiguous {
    #[error("The path must start with a slash")]
    NoSlash,
    #[error("The path has a character that must be percent-encoded")]
    Character,
    #[error("The path has an invalid percent-encoding")]
    Encoding,
    #[error("The path has an encoded slash, backslash or null")]
    EncodedDelimiter,
}

/// The target of a request in origin form: a path and maybe a query, all of it ASCII.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    text: Bytes,
    /// Of the path in it.
    length: usize,
}

impl Target {
    /// A target as it came, its path in any spelling, in origin or absolute form. Printable ASCII
    /// is all that may be in it.
    pub(crate) fn new(raw: Bytes) -> Self {
        let text = origin_form(raw);
        let length = memchr::memchr(b'?', &text).unwrap_or(text.len());
        Self { text, length }
    }

    /// The same target with its path in the one spelling that is matched, counted and forwarded.
    ///
    /// # Errors
    /// When the path has more than one reading.
    pub(crate) fn normalise(&mut self) -> Result<(), Ambiguous> {
        let (path, query) = self.text.split_at(self.length);
        if let Cow::Owned(path) = normalise(path)? {
            self.length = path.len();
            self.text = [path.as_bytes(), query].concat().into();
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &str {
        str::from_utf8(&self.text[..self.length]).unwrap_or_default()
    }

    /// Path and query.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.text
    }
}

/// A target without scheme and host, which agree with `Host`.
fn origin_form(target: Bytes) -> Bytes {
    if target.starts_with(b"/") {
        return target;
    }
    let Some(scheme) = memchr::memmem::find(&target, b"://") else {
        return target;
    };
    let rest = target.slice(scheme + 3..);
    match rest.iter().position(|byte| matches!(byte, b'/' | b'?')) {
        Some(start) if rest[start] == b'/' => rest.slice(start..),
        // There is always a path (RFC 9112, section 3.2.2).
        Some(start) => [b"/", &rest[start..]].concat().into(),
        None => Bytes::from_static(b"/"),
    }
}

/// The normalised path: characters that may stand for themselves do, the others are encoded in upper
/// case, no segment is empty or a dot. A trailing slash stays. Plain paths come back without a copy.
///
/// # Errors
/// When the path has more than one reading.
pub(crate) fn normalise(path: &[u8]) -> Result<Cow<'_, str>, Ambiguous> {
    if path.first() != Some(&b'/') {
        return Err(Ambiguous::NoSlash);
    }
    let text = std::str::from_utf8(path).map_err(|_| Ambiguous::Character)?;
    if is_plain(path) {
        return Ok(Cow::Borrowed(text));
    }
    let decoded = decode(path)?;
    Ok(Cow::Owned(without_dots(&decoded)))
}

/// Whether a path is its own normal form, in one pass: no encoding, no `//`, no segment that
/// begins with a dot, nothing that needs encoding.
fn is_plain(path: &[u8]) -> bool {
    let mut previous = 0;
    for &byte in path {
        let begins_segment = previous == b'/';
        if !PLAIN[usize::from(byte)] || (begins_segment && (byte == b'/' || byte == b'.')) {
            return false;
        }
        previous = byte;
    }
    true
}

/// The characters of a path that stand for themselves (RFC 3986, section 3.3, `pchar`), and `/`.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = b'!';
    while byte <= b'~' {
        plain[byte as usize] = !is_sloppy(byte) && !matches!(byte, b'%' | b'\\' | b'#' | b'?');
        byte += 1;
    }
    plain
};

/// Characters that clients send unencoded although they should not, and which no server reads in
/// another way.
const fn is_sloppy(byte: u8) -> bool {
    matches!(
        byte,
        b'"' | b'<' | b'>' | b'[' | b']' | b'^' | b'`' | b'{' | b'|' | b'}'
    )
}

fn decode(path: &[u8]) -> Result<String, Ambiguous> {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'%' {
            if PLAIN[usize::from(*byte)] {
                decoded.push(char::from(*byte));
            } else if is_sloppy(*byte) {
                encode(&mut decoded, *byte);
            } else {
                return Err(Ambiguous::Character);
            }
            continue;
        }
        let [high, low, after @ ..] = rest else {
            return Err(Ambiguous::Encoding);
        };
        rest = after;
        let byte = hex(*high)? << 4 | hex(*low)?;
        match byte {
            0 | b'/' | b'\\' => return Err(Ambiguous::EncodedDelimiter),
            _ if PLAIN[usize::from(byte)] => decoded.push(char::from(byte)),
            _ => encode(&mut decoded, byte),
        }
    }
    Ok(decoded)
}

fn encode(path: &mut String, byte: u8) {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F',
    ];
    path.push('%');
    path.push(DIGITS[usize::from(byte >> 4)]);
    path.push(DIGITS[usize::from(byte & 0xf)]);
}

fn hex(digit: u8) -> Result<u8, Ambiguous> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(Ambiguous::Encoding),
    }
}

/// Dot segments resolved (RFC 3986, section 5.2.4) and empty ones left out.
fn without_dots(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_in_slash = true;
    for segment in path.split('/') {
        ends_in_slash = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            _ => segments.push(segment),
        }
    }
    let mut normal = String::with_capacity(path.len());
    for segment in &segments {
        normal.push('/');
        normal.push_str(segment);
    }
    if ends_in_slash {
        normal.push('/');
    }
    normal
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn normal(path: &str) -> Result<String, Ambiguous> {
        normalise(path.as_bytes()).map(Cow::into_owned)
    }

    #[test]
    fn every_spelling_of_a_path_is_one() {
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
            assert_eq!(normal(spelling).as_deref(), Ok("/api/login"), "{spelling}");
        }
        for (spelling, one) in [
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
            assert_eq!(normal(spelling).as_deref(), Ok(one), "{spelling}");
        }
    }

    #[test]
    fn what_has_two_readings_is_refused() {
        for path in [
            "/a%2fb", "/a%5Cb", "/a%00", "/a\\b", "/a%", "/a%2", "/a%zz", "/a b", "/a\tb", "/a#b",
            "", "api", "*", "/für",
        ] {
            assert!(normal(path).is_err(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(path in "/[a-z./%0-9A-F@|;]{0,30}") {
            if let Ok(once) = normal(&path) {
                prop_assert_eq!(normal(&once), Ok(once.clone()));
                prop_assert!(!once.contains("//"));
                prop_assert!(!once.split('/').any(|segment| segment == "." || segment == ".."));
            }
        }

        #[test]
        fn no_bytes_break_it(path in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = normalise(&path);
        }
    }
}
