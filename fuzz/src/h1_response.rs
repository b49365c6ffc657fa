//! Responses of endpoints: headers, framing and body, interim responses, and reuse of the connection, against hyper's
//! client.

use std::collections::BTreeMap;

use gateway::fuzz::{BodyFraming, EndpointBehaviour, Reading, Response, read_response};

use crate::h1_request::{grouped, remove_hop_by_hop};
use crate::hyper_peer;

/// Headers that reveal an endpoint's software, and are not passed on.
const REMOVED: [&str; 3] = ["server", "via", "x-powered-by"];
const SWITCHING_PROTOCOLS: u16 = 101;

/// Input: a byte that selects the request and the end of the connection, then what the endpoint sends.
pub(crate) fn run(input: &[u8]) {
    let Some((choice, sent)) = input.split_first() else {
        return;
    };
    let endpoint = EndpointBehaviour {
        method: ["GET", "HEAD", "POST", "OPTIONS"][usize::from(choice & 3)],
        wants_upgrade: choice & 4 != 0,
        closes: choice & 8 == 0,
        sent,
    };
    let reading = read_response(endpoint, sent.len().max(1));
    for write_size in [1, 5] {
        let other = read_response(endpoint, write_size);
        let is_same = match (&reading, &other) {
            (Reading::Malformed(_), Reading::Malformed(_)) => true,
            (one, other) => one == other,
        };
        assert!(is_same, "{reading:?}\nin writes of {write_size}: {other:?}");
    }
    if let Reading::Complete(response) = &reading {
        check(endpoint, response);
        compare_with_hyper(endpoint, response);
    }
}

/// Checks what holds for every response (RFC 9112, section 6.3).
fn check(endpoint: EndpointBehaviour<'_>, response: &Response) {
    let status = response.status;
    assert!((200..1000).contains(&status) || status == SWITCHING_PROTOCOLS);
    assert!(
        response
            .interim
            .iter()
            .all(|status| (100..200).contains(status))
    );
    let length = response.body.len() as u64;
    match response.framing {
        BodyFraming::Empty => assert_eq!(length, 0),
        BodyFraming::Length(expected) => assert_eq!(length, expected),
        BodyFraming::Chunked => {}
        BodyFraming::UntilClose => assert!(endpoint.closes),
    }
    if endpoint.method == "HEAD" || [204, 304].contains(&status) {
        assert_eq!(length, 0, "a body where there is none");
    }
    if response.is_reusable {
        assert!(!endpoint.closes && response.framing != BodyFraming::UntilClose);
    }
}

fn compare_with_hyper(endpoint: EndpointBehaviour<'_>, response: &Response) {
    if response.status == SWITCHING_PROTOCOLS {
        return;
    }
    let EndpointBehaviour {
        method,
        wants_upgrade,
        sent,
        closes,
    } = endpoint;
    let Some(other) = hyper_peer::read_response(method, wants_upgrade, sent, closes) else {
        panic!("hyper rejects the response {response:?}");
    };
    assert_eq!(other.status, response.status);
    // It rejects trailers that are no headers, which we drop unread.
    if response.framing != BodyFraming::Chunked || other.body.is_some() {
        assert_eq!(other.body.as_ref(), Some(&response.body), "{response:?}");
    }
    let mut headers = grouped(&other.headers);
    remove_hop_by_hop(&mut headers);
    headers.retain(|name, _| !REMOVED.contains(&name.as_str()));
    let mut ours: BTreeMap<_, _> = grouped(&response.headers);
    ours.remove("content-length");
    assert_eq!(headers, ours);
}
