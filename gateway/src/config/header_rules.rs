//! Parsing of the feature `headers`: changes of the headers of requests and responses.

use http::{HeaderName, HeaderValue};

use crate::config::model::{HeaderChanges, HeaderRules};
use crate::config::node::{Mapping, NamedValue, Node};

/// Headers that frame a message, concern one connection, or are set by the gateway, in requests or in responses.
/// A name with another separator than `-` counts as the same, since servers may take it for that.
const OWN_HEADERS: [&str; 22] = [
    // Framing and connection (RFC 9110, sections 7.6.1, 7.8 and 8.6; RFC 9112, section 6)
    "connection",
    "content-length",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    // Client and user
    "forwarded",
    "host",
    "x-real-ip",
    "x-session-id",
    "x-user-id",
    "x-user-login",
    // Request and trace
    "date",
    "traceparent",
    "tracestate",
    "x-request-id",
    // Quota
    "ratelimit",
    "ratelimit-policy",
];
/// Prefix of the headers that describe the client.
const FORWARDED_PREFIX: &str = "x-forwarded-";
const CORS_PREFIX: &str = "access-control-";
const HSTS: &str = "strict-transport-security";
/// Headers of which a message has one line (RFC 9110, section 5.3; RFC 6265, section 5.4; RFC 6797, section 6.1).
const SINGLE_HEADERS: [&str; 7] = [
    "authorization",
    "content-type",
    "cookie",
    "location",
    "origin",
    HSTS,
    "user-agent",
];

/// Messages that changes are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    Request,
    Response,
}

/// Presence of the feature `cors` on a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CorsPresence {
    Present,
    Absent,
}

/// Kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Set,
    Add,
    Remove,
}

/// Parses the settings of `headers`.
pub(super) fn parse_header_rules(
    settings: &mut Mapping<'_, '_>,
    cors: CorsPresence,
) -> Option<HeaderRules> {
    let mut parse = |key, message| {
        settings.get_or(key, HeaderChanges::default(), |value| {
            parse_changes(value, |name, change| check(name, message, change, cors))
        })
    };
    let request = parse("request", Message::Request);
    let response = parse("response", Message::Response);
    let mut request = request?;
    // They may be credentials of the gateway: their `Debug` does not show them.
    for (_, value) in request.set.iter_mut().chain(&mut request.add) {
        value.set_sensitive(true);
    }
    Some(HeaderRules {
        request,
        response: response?,
    })
}

/// Parses `set`, `add` and `remove`. `check` rejects the headers that cannot be changed.
fn parse_changes(
    value: &Node<'_, '_>,
    check: impl Fn(&HeaderName, Change) -> Result<(), String>,
) -> Option<HeaderChanges> {
    let mut mapping = value.mapping()?;
    let parse_name = |text: &str, change| {
        let name = HeaderName::from_bytes(text.as_bytes())
            .map_err(|_| format!("`{}` is not a header name", text.escape_debug()))?;
        check(&name, change).map(|()| name)
    };
    let set = mapping.get_or("set", Vec::new(), |lines| {
        parse_lines(lines, |text| parse_name(text, Change::Set))
    });
    let add = mapping.get_or("add", Vec::new(), |lines| {
        parse_lines(lines, |text| parse_name(text, Change::Add))
    });
    let remove = mapping.get_or("remove", Vec::new(), |names| {
        names.parse_list(|name| name.parse(|text| parse_name(text, Change::Remove)))
    });
    mapping.reject_unknown_keys();
    Some(HeaderChanges {
        set: set?,
        add: add?,
        remove: remove?,
    })
}

/// Parses a mapping of names to values. Its keys are header names, also those that begin with `x-`.
fn parse_lines(
    lines: &Node<'_, '_>,
    parse_name: impl Fn(&str) -> Result<HeaderName, String>,
) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let lines = lines.mapping()?.into_entries();
    let parse_line = |(index, line): (usize, &NamedValue<'_, '_>)| {
        let is_same =
            |other: &&NamedValue<'_, '_>| folded_name(&other.name) == folded_name(&line.name);
        let name = match (parse_name(&line.name), lines[..index].iter().find(is_same)) {
            (Ok(name), None) => Some(name),
            (Ok(_), Some(other)) => {
                let problem = format!("`{}` is the same header as `{}`", line.name, other.name);
                line.key.report_error(problem);
                None
            }
            (Err(problem), _) => {
                line.key.report_error(problem);
                None
            }
        };
        let value = line.value.parse(parse_value);
        Some((name?, value?))
    };
    let parsed: Vec<_> = lines.iter().enumerate().map(parse_line).collect();
    parsed.into_iter().collect()
}

/// Parses a value: printable ASCII and tabs, without white space at its ends (RFC 9110, section 5.5). Errors do not
/// quote it, since it may be a secret.
fn parse_value(text: &str) -> Result<HeaderValue, String> {
    if let Some(found) = text
        .chars()
        .find(|letter| *letter != '\t' && letter.is_control())
    {
        return Err(format!(
            "has the control character U+{:04X}: a header value is one line",
            u32::from(found)
        ));
    }
    if let Some(found) = text.chars().find(|letter| !letter.is_ascii()) {
        return Err(format!(
            "has `{found}`, must be ASCII, which all recipients read alike"
        ));
    }
    if text.trim_ascii() != text {
        return Err("has white space at its beginning or end, which recipients remove".to_owned());
    }
    HeaderValue::from_str(text).map_err(|_| "is not a header value".to_owned())
}

/// Checks that a header may be changed.
fn check(
    name: &HeaderName,
    message: Message,
    change: Change,
    cors: CorsPresence,
) -> Result<(), String> {
    let folded = folded_name(name.as_str());
    if is_own(&folded) {
        return Err(format!(
            "`{name}` frames the message, concerns one connection, or is set by the gateway: it cannot be changed"
        ));
    }
    if cors == CorsPresence::Present
        && message == Message::Response
        && folded.starts_with(CORS_PREFIX)
    {
        return Err(format!(
            "`{name}` is set by the feature `cors` of this path"
        ));
    }
    match change {
        Change::Remove if message == Message::Response && folded == HSTS => Err(format!(
            "`{name}` is on every response: replace its value by `set`"
        )),
        Change::Add if SINGLE_HEADERS.contains(&&*folded) => Err(format!(
            "`{name}` can occur only once in a message: use `set`"
        )),
        _ => Ok(()),
    }
}

/// Returns whether a folded name is that of a header that frames a message, concerns one connection, or is set by the
/// gateway.
pub(super) fn is_own(folded: &str) -> bool {
    OWN_HEADERS.contains(&folded) || folded.starts_with(FORWARDED_PREFIX)
}

/// Returns a name in lower case, with each separator as `-`, as servers that do not distinguish separators read it
/// (RFC 3875, section 4.1.18).
pub(crate) fn folded_name(name: &str) -> String {
    let fold = |letter: char| {
        if letter.is_ascii_alphanumeric() {
            letter.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    name.chars().map(fold).collect()
}

/// Returns whether a name is `folded`, a folded name, with any separators.
pub(crate) fn is_spelling_of(name: &HeaderName, folded: &str) -> bool {
    let name = name.as_str().as_bytes();
    let is_same =
        |(own, byte): (u8, &u8)| own == *byte || own == b'-' && !byte.is_ascii_alphanumeric();
    folded.len() == name.len() && folded.bytes().zip(name).all(is_same)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_value_is_one_line_of_ascii() {
        for valid in [
            "",
            "a",
            "a b\tc",
            "max-age=63072000; includeSubDomains",
            "\"~\"",
        ] {
            assert_eq!(parse_value(valid).unwrap(), valid);
        }
        let problems: String = [
            "a\r\nb: c",
            "a\nb",
            "a\rb",
            "a\0",
            "\u{7f}",
            "a\u{85}b",
            "b\u{fc}cher",
            " a",
            "a\t",
        ]
        .map(|text| parse_value(text).unwrap_err() + "\n")
        .concat();
        insta::assert_snapshot!(problems);
    }

    proptest! {
        #[test]
        fn an_accepted_value_has_no_control_character(text in any::<String>()) {
            if let Ok(value) = parse_value(&text) {
                let is_text = |byte: &u8| *byte == b'\t' || (b' '..=b'~').contains(byte);
                prop_assert!(value.as_bytes().iter().all(is_text));
                prop_assert_eq!(value.as_bytes(), text.as_bytes());
            }
        }
    }
}
