//! Origins of the key `cors.origins` (RFC 6454; Fetch standard, section 3.2).
//!
//! Invariant: a request's `Origin` is compared byte for byte with the serialization that browsers send: scheme and
//! host in lower case, no default port, no final dot. It is never normalised, so that no spelling of a foreign origin
//! can be taken for a permitted one.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::config::host::{HostPattern, is_label};

/// Value of `Origin` for an origin that is not disclosed: that of a sandboxed frame, of a file, or after a redirect
/// across origins.
const NULL: &str = "null";
const WILDCARD_LABEL: &str = "*.";

/// Origins whose pages may read responses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AllowedOrigins {
    /// Every origin, `null` included.
    Any,
    /// Never empty.
    Listed(Vec<OriginPattern>),
}

impl AllowedOrigins {
    /// Returns whether the value of one `Origin` header is permitted.
    pub(crate) fn permit(&self, origin: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(patterns) => patterns.iter().any(|pattern| pattern.matches(origin)),
        }
    }
}

/// One origin, or the origins of all names with one more label than a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OriginPattern {
    /// Serialized origin, or `null`.
    Exact(String),
    /// `https://*.example.org:8443`: what stands before the label, and what stands after it.
    AnyLabel { prefix: String, suffix: String },
}

impl OriginPattern {
    pub(super) fn is_null(&self) -> bool {
        *self == Self::Exact(NULL.to_owned())
    }

    /// Returns the domain of `*.` before a single label, under which anyone can register names, as in `https://*.com`.
    pub(super) fn top_level_domain(&self) -> Option<&str> {
        let Self::AnyLabel { suffix, .. } = self else {
            return None;
        };
        let domain = suffix.split(':').next()?.strip_prefix('.')?;
        (!domain.contains('.')).then_some(domain)
    }

    fn matches(&self, origin: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => origin == exact.as_bytes(),
            Self::AnyLabel { prefix, suffix } => origin
                .strip_prefix(prefix.as_bytes())
                .and_then(|rest| rest.strip_suffix(suffix.as_bytes()))
                .is_some_and(|label| is_label(label) && !label.iter().any(u8::is_ascii_uppercase)),
        }
    }
}

impl FromStr for OriginPattern {
    type Err = String;

    /// Parses `scheme://host[:port]`, with `*.` before the host for any one label, or `null`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == NULL {
            return Ok(Self::Exact(NULL.to_owned()));
        }
        let not_an_origin = || {
            format!(
                "`{text}` is not an origin: write scheme, host and port alone, as in https://app.example.org, \
                 https://*.example.org or http://localhost:3000"
            )
        };
        if !text.is_ascii() {
            return Err(format!(
                "`{text}` has characters outside ASCII: write the host in Punycode, as browsers send it (xn--…)"
            ));
        }
        let (scheme, authority) = text.split_once("://").ok_or_else(not_an_origin)?;
        if !is_scheme(scheme) {
            return Err(not_an_origin());
        }
        let scheme = scheme.to_ascii_lowercase();
        if authority.is_empty() {
            return Err(format!(
                "`{text}` has no host: browsers send `null` as the origin of such pages"
            ));
        }
        if let Some(origin) = authority
            .strip_suffix('/')
            .filter(|rest| !rest.is_empty() && !rest.contains('/'))
        {
            return Err(format!(
                "`{text}` ends with a slash, which no origin has: write {scheme}://{origin}"
            ));
        }
        let (host, port) = split_port(authority).ok_or_else(not_an_origin)?;
        let port = match port {
            None => None,
            Some(digits) => Some(parse_port(digits).ok_or_else(not_an_origin)?),
        };
        if host == "*" {
            return Err(format!(
                "`{text}` is not an origin: write `*` alone for every origin, or *. before a name for any one label"
            ));
        }
        if host.ends_with('.') {
            return Err(format!(
                "`{text}` has a dot at the end of its host, which makes it another origin than without: remove it"
            ));
        }
        let host = serialized_host(host).ok_or_else(not_an_origin)?;
        let port = match port.filter(|port| Some(*port) != default_port(&scheme)) {
            Some(port) => format!(":{port}"),
            None => String::new(),
        };
        Ok(match host.strip_prefix(WILDCARD_LABEL) {
            Some(parent) => Self::AnyLabel {
                prefix: format!("{scheme}://"),
                suffix: format!(".{parent}{port}"),
            },
            None => Self::Exact(format!("{scheme}://{host}{port}")),
        })
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(origin) => formatter.write_str(origin),
            Self::AnyLabel { prefix, suffix } => write!(formatter, "{prefix}*{suffix}"),
        }
    }
}

/// Returns whether a text is a scheme (RFC 3986, section 3.1).
fn is_scheme(text: &str) -> bool {
    let is_scheme_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    text.starts_with(|first: char| first.is_ascii_alphabetic()) && text.bytes().all(is_scheme_byte)
}

/// Splits an authority into its host, with brackets if it is an IPv6 address, and its port, if it has one.
fn split_port(authority: &str) -> Option<(&str, Option<&str>)> {
    let host_end = if authority.starts_with('[') {
        authority.find(']')? + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    match authority.split_at(host_end) {
        (host, "") => Some((host, None)),
        (host, port) => Some((host, Some(port.strip_prefix(':')?))),
    }
}

fn parse_port(digits: &str) -> Option<u16> {
    let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    digits.parse().ok().filter(|port| is_number && *port > 0)
}

/// Returns the port that browsers leave out (WHATWG URL, section 4.2).
fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// Returns a host as browsers serialize it (WHATWG URL, section 3.5), or with its wildcard.
fn serialized_host(host: &str) -> Option<String> {
    let address = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    if let Some(address) = address {
        let address: Ipv6Addr = address.parse().ok()?;
        // Rust writes the last 32 bits of these like an IPv4 address, browsers never do.
        return Some(match (address.to_ipv4_mapped(), address.segments()) {
            (Some(_), [.., high, low]) => format!("[::ffff:{high:x}:{low:x}]"),
            (None, _) => format!("[{address}]"),
        });
    }
    let host: HostPattern = host.parse().ok()?;
    Some(host.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use http::Uri;
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> OriginPattern {
        text.parse().unwrap()
    }

    fn matches(pattern: &str, origin: &str) -> bool {
        parse(pattern).matches(origin.as_bytes())
    }

    #[test]
    fn an_origin_is_kept_as_browsers_serialize_it() {
        for (text, serialized) in [
            ("https://app.example.org", "https://app.example.org"),
            ("HTTPS://App.Example.ORG:443", "https://app.example.org"),
            ("http://localhost:80", "http://localhost"),
            ("http://localhost:03000", "http://localhost:3000"),
            ("https://a.example:80", "https://a.example:80"),
            ("https://*.Example.org:8443", "https://*.example.org:8443"),
            ("https://10.0.0.1", "https://10.0.0.1"),
            ("http://[0:0::1]:8080", "http://[::1]:8080"),
            ("http://[::ffff:1.2.3.4]", "http://[::ffff:102:304]"),
            ("capacitor://localhost", "capacitor://localhost"),
            (
                "chrome-extension://abcdefghijklmnop",
                "chrome-extension://abcdefghijklmnop",
            ),
            ("null", "null"),
        ] {
            assert_eq!(parse(text).to_string(), serialized);
        }
    }

    #[test]
    fn an_invalid_origin_is_rejected_with_the_reason() {
        let problems: String = [
            "",
            "app.example.org",
            "https:app.example.org",
            "https://",
            "file://",
            "https://app.example.org/",
            "https://app.example.org/path",
            "https://app.example.org?q",
            "https://user@app.example.org",
            "https://app.example.org.",
            "https://app.example.org:",
            "https://app.example.org:0",
            "https://app.example.org:65536",
            "https://app.example.org:+1",
            "https://app.example.org:*",
            "https://*",
            "https://*example.org",
            "https://a.*.org",
            "https://*.*.org",
            "*.example.org",
            "https://::1",
            "https://[::1",
            "https://[app]",
            "https://[::1]x",
            "https://bücher.example",
            "https://a b",
            " https://a",
            "1a://a",
            "Null",
        ]
        .map(|text| text.parse::<OriginPattern>().unwrap_err() + "\n")
        .concat();
        insta::assert_snapshot!(problems);
    }

    #[test]
    fn only_the_same_origin_matches_an_exact_one() {
        let pattern = "https://app.example.org";
        assert!(matches(pattern, "https://app.example.org"));
        for foreign in [
            "",
            "*",
            "null",
            "http://app.example.org",
            "https://app.example.org:443",
            "https://app.example.org:8443",
            "https://app.example.org.",
            "https://app.example.org.evil.net",
            "https://evilapp.example.org",
            "https://evil.net#https://app.example.org",
            "https://app.example.org@evil.net",
            "https://evil@app.example.org",
            "https://APP.example.org",
            "HTTPS://app.example.org",
            "https://app.example.org/",
            "https://app.example.org https://evil.net",
            "https://app.example.org, https://evil.net",
            "https://app.example.org\0",
            "https://app.example.org\t",
        ] {
            assert!(!matches(pattern, foreign), "{foreign}");
        }
    }

    #[test]
    fn a_wildcard_matches_one_label_of_the_same_scheme_and_port() {
        let pattern = "https://*.example.org";
        for own in [
            "https://a.example.org",
            "https://xn--bcher-kva.example.org",
            "https://a_b-1.example.org",
        ] {
            assert!(matches(pattern, own), "{own}");
        }
        let long = format!("https://{}.example.org", "a".repeat(64));
        for foreign in [
            "https://example.org",
            "https://.example.org",
            "https://a.b.example.org",
            "https://evilexample.org",
            "https://a.example.org.evil.net",
            "https://a.example.org:8443",
            "https://a.example.org.",
            "http://a.example.org",
            "https://A.example.org",
            "https://evil.net/.example.org",
            "https://evil.net:.example.org",
            "https://evil@a.example.org",
            "https://evil.net#.example.org",
            "https://*.example.org",
            "https://%61.example.org",
            "https://a\u{ad}.example.org",
            &long,
        ] {
            assert!(!matches(pattern, foreign), "{foreign}");
        }
        assert!(matches(
            "http://*.localhost:3000",
            "http://a.localhost:3000"
        ));
        assert!(!matches("http://*.localhost:3000", "http://a.localhost"));
    }

    #[test]
    fn null_is_permitted_only_if_it_is_listed() {
        let permit = |origins: &[&str]| {
            let patterns = origins.iter().map(|text| parse(text)).collect();
            AllowedOrigins::Listed(patterns).permit(b"null")
        };
        assert!(permit(&["https://a", "null"]));
        assert!(!permit(&["https://a", "https://*.null"]));
        assert!(AllowedOrigins::Any.permit(b"null"));
    }

    proptest! {
        #[test]
        fn an_exact_origin_matches_itself_alone(
            configured in "https?://[a-c.]{1,6}(:[0-9]{1,4})?",
            origin in "https?://[a-c.]{1,6}(:[0-9]{1,4})?",
        ) {
            let Ok(pattern) = configured.parse::<OriginPattern>() else { return Ok(()) };
            let serialized = pattern.to_string();
            prop_assert!(pattern.matches(serialized.as_bytes()));
            prop_assert_eq!(pattern.matches(origin.as_bytes()), origin == serialized);
            prop_assert_eq!(serialized.parse::<OriginPattern>(), Ok(pattern));
        }

        #[test]
        fn what_a_wildcard_matches_is_a_host_with_one_more_label(
            origin in "(https?://)?[a-bA-B.@:#/*%e]{0,6}\\.?(ex\\.org|ex\\.org\\.|ex\\.org\\.a|ex\\.org:1)",
        ) {
            if matches("https://*.ex.org", &origin) {
                let uri: Uri = origin.parse().unwrap();
                prop_assert_eq!(uri.scheme_str(), Some("https"));
                prop_assert_eq!(uri.authority().unwrap().as_str(), uri.host().unwrap());
                let label = uri.host().unwrap().strip_suffix(".ex.org").unwrap();
                prop_assert!(!label.is_empty() && !label.contains('.'));
                prop_assert_eq!(origin.to_lowercase(), origin);
            }
        }

        #[test]
        fn an_arbitrary_text_is_parsed_without_a_panic(text in any::<String>()) {
            if let Ok(pattern) = text.parse::<OriginPattern>() {
                prop_assert_eq!(pattern.to_string().parse::<OriginPattern>(), Ok(pattern));
            }
        }
    }
}
