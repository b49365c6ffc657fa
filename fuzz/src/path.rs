//! Normalisation of paths, against a parser of RFC 3986.

use fluent_uri::Uri;
use gateway::fuzz::{Target, normalise_path, read_target};

/// Characters that are accepted unencoded, although RFC 3986 requires encoding.
const TOLERATED: &[u8] = b"\"<>[]^`{|}";

/// Maximum length of a received target in bytes.
const MAX_TARGET_BYTES: usize = 8 * 1024;
/// Forms of targets that are not rejected before their path is read: origin form and absolute form.
const FORMS: [&[u8]; 3] = [b"/", b"http://", b"https://"];

/// Input: a request target.
pub(crate) fn run(input: &[u8]) {
    if let Some(normalised) = normalise_path(input) {
        assert_eq!(normalise_path(normalised.as_bytes()), Some(normalised));
    }
    let has_form = |form: &&[u8]| {
        let start = input.get(..form.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(form))
    };
    if !FORMS.iter().any(has_form) {
        return;
    }
    let Some(Ok(Target { matched, forwarded })) = read_target(input) else {
        return;
    };
    assert_eq!(
        normalise_path(matched.as_bytes()),
        Some(matched.clone()),
        "idempotent"
    );
    let text = str::from_utf8(&forwarded).expect("a target is ASCII");
    let (path, query) = split_query(text);
    assert_eq!(normalise_path(path.as_bytes()), Some(matched.clone()));
    // Encoding may make a long target longer than a received one may be.
    if forwarded.len() <= MAX_TARGET_BYTES {
        let again = read_target(&forwarded).and_then(Result::ok);
        let again = again.map(|again| (again.matched, again.forwarded));
        assert_eq!(again, Some((matched.clone(), forwarded.clone())));
    }
    // The recipient's parser finds nothing to normalise, and the segments that were matched.
    let uri = format!("http://host{path}");
    let uri = Uri::parse(uri.as_str()).expect("the forwarded path is one of RFC 3986");
    assert_eq!(uri.path().as_str(), path);
    assert_eq!(uri.normalize().path().as_str(), path);
    assert_eq!(segments(path), segments(&matched));
    assert!(!path.contains("//") && !matched.contains("//"));
    compare_with_normalised(input, path, query);
}

/// Compares the forwarded path with the received one as a parser of RFC 3986 normalises it. That one keeps empty
/// segments.
fn compare_with_normalised(input: &[u8], forwarded: &str, query: Option<&str>) {
    let received = str::from_utf8(input).expect("a target is ASCII");
    let (path, received_query) = split_query(received);
    assert_eq!(query, received_query);
    if !path.starts_with('/') || path.contains("//") {
        return;
    }
    let mut encoded = String::from("http://host");
    for byte in path.bytes() {
        if TOLERATED.contains(&byte) {
            encoded.extend(['%', hex_digit(byte >> 4), hex_digit(byte & 15)]);
        } else {
            encoded.push(char::from(byte));
        }
    }
    let uri = Uri::parse(encoded.as_str()).expect("the received path is one of RFC 3986");
    assert_eq!(uri.normalize().path().as_str(), forwarded);
}

fn hex_digit(value: u8) -> char {
    let digit = char::from_digit(value.into(), 16).expect("four bits");
    digit.to_ascii_uppercase()
}

fn split_query(target: &str) -> (&str, Option<&str>) {
    match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    }
}

/// Returns the decoded segments of a path.
fn segments(path: &str) -> Vec<Vec<u8>> {
    let decode = |segment: &str| {
        let (mut decoded, mut rest) = (Vec::new(), segment.as_bytes());
        while let [first, after @ ..] = rest {
            rest = after;
            if let (b'%', [high, low, after @ ..]) = (first, after) {
                let digits = [*high, *low].map(|digit| char::from(digit).to_digit(16));
                let [Some(high), Some(low)] = digits else {
                    panic!("the percent-encoding is invalid");
                };
                decoded.push(u8::try_from(high << 4 | low).expect("two digits"));
                rest = after;
            } else {
                decoded.push(*first);
            }
        }
        decoded
    };
    path.split('/').map(decode).collect()
}
