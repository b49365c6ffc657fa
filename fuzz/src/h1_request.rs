//! Request headers of HTTP/1.1. Whatever is accepted, `httparse` and hyper read with the same method, target, headers
//! and framing, however it is split into reads.

use std::collections::BTreeMap;

use gateway::fuzz::{BodyFraming, Reading, Request, read_request};

use crate::hyper_peer;

/// Low, so that inputs reach it.
const MAX_BYTES: usize = 2048;
/// Headers that concern one connection, and those that frame the body.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "content-length",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

type Headers = BTreeMap<String, Vec<Vec<u8>>>;

/// Input: what a client sends.
pub(crate) fn run(input: &[u8]) {
    let reading = read_request(input, input.len().max(1), MAX_BYTES);
    for read_size in [1, 7] {
        compare(&reading, &read_request(input, read_size, MAX_BYTES));
    }
    if let Reading::Complete(request) = reading {
        assert!(request.length <= MAX_BYTES + leading_line_breaks(input));
        let section = &input[..request.length];
        compare_with_httparse(section, &request);
        compare_with_hyper(section, &request);
    }
}

fn leading_line_breaks(input: &[u8]) -> usize {
    input
        .iter()
        .take_while(|byte| b"\r\n".contains(byte))
        .count()
}

/// Checks that the size of reads does not matter. A long request line may be rejected before its end is read.
fn compare(at_once: &Reading<Request>, in_parts: &Reading<Request>) {
    let is_same = match (at_once, in_parts) {
        (Reading::Malformed(_) | Reading::Incomplete, Reading::Malformed(_)) => true,
        (one, other) => one == other,
    };
    assert!(is_same, "{at_once:?}\nin small reads: {in_parts:?}");
}

/// Reads a header section again, by the rules of RFC 9110 and RFC 9112.
fn compare_with_httparse(section: &[u8], request: &Request) {
    let mut space = [httparse::EMPTY_HEADER; 100];
    let mut parsed = httparse::Request::new(&mut space);
    let status = parsed.parse(section).expect("httparse accepts the section");
    assert_eq!(status, httparse::Status::Complete(section.len()));
    assert_eq!(parsed.method, Some(request.method.as_str()));
    assert_eq!(parsed.version, Some(u8::from(!request.is_http_1_0)));
    let mut headers = Headers::new();
    for header in &*parsed.headers {
        let values = headers.entry(header.name.to_ascii_lowercase()).or_default();
        values.push(header.value.to_vec());
    }
    let framing = match (
        one(&headers, "content-length"),
        one(&headers, "transfer-encoding"),
    ) {
        (None, None) => BodyFraming::Empty,
        (Some(length), None) => BodyFraming::Length(
            str::from_utf8(length)
                .expect("digits")
                .parse()
                .expect("a number"),
        ),
        (None, Some(coding)) => {
            assert!(coding.eq_ignore_ascii_case(b"chunked"));
            BodyFraming::Chunked
        }
        (Some(_), Some(_)) => panic!("two framings"),
    };
    assert_eq!(framing, request.framing);
    let target = parsed.path.expect("the request line is complete");
    let target = target.split('#').next().unwrap_or_default();
    let (authority, target) = origin_form(target);
    assert_eq!(target.as_bytes(), request.target);
    let host = one(&headers, "host").map(<[u8]>::to_vec);
    if let (Some(authority), Some(host)) = (authority, &host) {
        assert!(authority.as_bytes().eq_ignore_ascii_case(host));
    }
    assert!(host.is_some() || request.is_http_1_0);
    if let (None, Some(authority)) = (&host, authority) {
        headers.insert("host".to_owned(), vec![authority.into()]);
    }
    remove_hop_by_hop(&mut headers);
    remove_void_expectation(&mut headers, request);
    assert_eq!(headers, grouped(&request.headers));
}

/// Removes an expectation that has no effect (RFC 9110, section 10.1.1): it is not forwarded.
fn remove_void_expectation(headers: &mut Headers, request: &Request) {
    let is_empty = matches!(request.framing, BodyFraming::Empty | BodyFraming::Length(0));
    if request.is_http_1_0 || is_empty {
        headers.remove("expect");
    }
}

/// Returns the only value of a header.
fn one<'h>(headers: &'h Headers, name: &str) -> Option<&'h [u8]> {
    let values = headers.get(name)?;
    assert_eq!(values.len(), 1, "{name} is repeated");
    Some(&values[0])
}

/// Returns the authority of a target in absolute form, and the target in origin form (RFC 9112, section 3.2).
fn origin_form(target: &str) -> (Option<&str>, String) {
    let Some((_, rest)) = target
        .split_once("://")
        .filter(|_| !target.starts_with('/'))
    else {
        return (None, target.to_owned());
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    let slash = if rest.starts_with('/') { "" } else { "/" };
    (Some(authority), format!("{slash}{rest}"))
}

/// Removes the headers of one connection (RFC 9110, section 7.6.1).
pub(crate) fn remove_hop_by_hop(headers: &mut Headers) {
    let options: Vec<String> = headers
        .get("connection")
        .into_iter()
        .flatten()
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(|option| option.trim_ascii().to_ascii_lowercase())
        .map(|option| String::from_utf8_lossy(&option).into_owned())
        .collect();
    headers.retain(|name, _| {
        let is_listed = name != "host" && options.contains(name);
        !is_listed && !HOP_BY_HOP.contains(&name.as_str())
    });
}

pub(crate) fn grouped(list: &[(String, Vec<u8>)]) -> Headers {
    let mut headers = Headers::new();
    for (name, value) in list {
        headers.entry(name.clone()).or_default().push(value.clone());
    }
    headers
}

fn compare_with_hyper(section: &[u8], request: &Request) {
    let Some(other) = hyper_peer::read_request_headers(section) else {
        panic!("hyper rejects the request");
    };
    assert_eq!(other.method, request.method);
    // It leaves the empty path of a target in absolute form as it is.
    let slash = if other.target.starts_with(b"?") {
        "/"
    } else {
        ""
    };
    assert_eq!([slash.as_bytes(), &other.target].concat(), request.target);
    assert_eq!(other.is_http_1_0, request.is_http_1_0);
    let length = match request.framing {
        BodyFraming::Empty => Some(0),
        BodyFraming::Length(length) => Some(length),
        BodyFraming::Chunked => None,
        BodyFraming::UntilClose => panic!("a request does not end with the connection"),
    };
    assert_eq!(other.length, length);
    let mut headers = grouped(&other.headers);
    remove_hop_by_hop(&mut headers);
    remove_void_expectation(&mut headers, request);
    let mut ours = grouped(&request.headers);
    if !headers.contains_key("host") {
        ours.remove("host");
    }
    assert_eq!(headers, ours);
}
