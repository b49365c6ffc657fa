//! Hop-by-hop headers: those that concern one connection and are not forwarded (RFC 9110, section
//! 7.6.1).

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::http::message::Upgrade;
use crate::http::syntax::HTTP2_SETTINGS;

/// Maximum number of connection options of a message. Each costs a search in its headers.
const MAX_OPTIONS: usize = 32;

pub(crate) const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
pub(crate) const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Value of `Upgrade` for the WebSocket protocol (RFC 6455).
pub(crate) const WEBSOCKET: &str = "websocket";

/// Connection options and requested upgrade of one message.
#[derive(Debug, Default)]
pub(crate) struct ConnectionHeaders {
    options: Vec<HeaderName>,
    /// `None` without `Upgrade`; `Some(Upgrade::None)` for a protocol that is not forwarded.
    upgrade: Option<Upgrade>,
}

/// Use of a connection after a message (RFC 9112, section 9.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Persistence {
    KeepAlive,
    Close,
}

/// Recipients that a header concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderScope {
    /// Concerns this connection only and is removed.
    HopByHop,
    /// Is forwarded.
    EndToEnd,
}

impl ConnectionHeaders {
    /// Records a header if it is hop-by-hop, and returns its scope. The headers that frame the body
    /// count as hop-by-hop because the next hop has its own framing.
    pub(crate) fn inspect(&mut self, name: &HeaderName, value: &HeaderValue) -> HeaderScope {
        match *name {
            CONNECTION => {
                let room = (MAX_OPTIONS + 1).saturating_sub(self.options.len());
                let options = value
                    .as_bytes()
                    .split(|byte| *byte == b',')
                    .filter_map(|option| HeaderName::from_bytes(option.trim_ascii()).ok());
                self.options.extend(options.take(room));
            }
            UPGRADE => {
                let is_websocket = self.upgrade.is_none()
                    && value.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes());
                self.upgrade = Some(if is_websocket {
                    Upgrade::WebSocket
                } else {
                    Upgrade::None
                });
            }
            TE | TRAILER | TRANSFER_ENCODING | CONTENT_LENGTH => {}
            _ if [KEEP_ALIVE, PROXY_CONNECTION, HTTP2_SETTINGS].contains(name) => {}
            _ => return HeaderScope::EndToEnd,
        }
        HeaderScope::HopByHop
    }

    /// Returns whether the message has more connection options than were recorded.
    pub(crate) fn has_too_many_options(&self) -> bool {
        self.options.len() > MAX_OPTIONS
    }

    /// Removes the headers that `Connection` lists, except those that concern all recipients.
    pub(crate) fn remove_listed(&self, headers: &mut HeaderMap) {
        for name in &self.options {
            if !concerns_all_recipients(name) {
                headers.remove(name);
            }
        }
    }

    fn has_option(&self, option: &str) -> bool {
        self.options.iter().any(|name| name == option)
    }

    /// Returns whether the connection persists after the message (RFC 9112, section 9.3).
    pub(crate) fn persistence(&self, is_http_1_0: bool) -> Persistence {
        if self.has_option("close") || is_http_1_0 && !self.has_option("keep-alive") {
            Persistence::Close
        } else {
            Persistence::KeepAlive
        }
    }

    /// Returns the upgrade, which has to be a connection option too (RFC 9110, section 7.8).
    pub(crate) fn upgrade(&self) -> Upgrade {
        match self.upgrade {
            Some(upgrade) if self.has_option("upgrade") => upgrade,
            _ => Upgrade::None,
        }
    }
}

/// Returns whether a header stays although `Connection` lists it. Every request needs `Host`. The others describe the
/// client: a proxy in front of the gateway adds them, and may pass on a `Connection` of its client that lists them
/// (CVE-2026-105299), which would let the client choose its identity (RFC 9110, section 7.6.1: options for headers
/// that are intended for all recipients must not be sent).
fn concerns_all_recipients(name: &HeaderName) -> bool {
    const NAMES: [&str; 7] = [
        // Without them a request would be anonymous, or one of no page.
        "authorization",
        "origin",
        "forwarded",
        "x-real-ip",
        "x-request-id",
        "traceparent",
        "tracestate",
    ];
    let text = name.as_str();
    *name == HOST || text.starts_with("x-forwarded-") || NAMES.contains(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what was recorded of `headers`, and those that are forwarded.
    fn inspect(headers: &[(&'static str, &'static str)]) -> (ConnectionHeaders, HeaderMap) {
        let (mut connection, mut forwarded) = (ConnectionHeaders::default(), HeaderMap::new());
        for (name, value) in headers {
            let name = HeaderName::from_static(name);
            let value = HeaderValue::from_static(value);
            if connection.inspect(&name, &value) == HeaderScope::EndToEnd {
                forwarded.append(name, value);
            }
        }
        connection.remove_listed(&mut forwarded);
        (connection, forwarded)
    }

    #[test]
    fn hop_by_hop_headers_are_not_forwarded() {
        let (connection, forwarded) = inspect(&[
            ("host", "a"),
            (
                "connection",
                "Close, X-Secret ,host,, keep alive, X-Forwarded-For, traceparent, Authorization, origin",
            ),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("x-secret", "s"),
            ("x-other", "o"),
            ("x-forwarded-for", "192.0.2.1"),
            ("traceparent", "t"),
            ("authorization", "Bearer a"),
            ("origin", "https://a.org"),
        ]);
        let mut names: Vec<_> = forwarded.keys().map(HeaderName::as_str).collect();
        // A removal changes the order of the others.
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "authorization",
                "host",
                "origin",
                "traceparent",
                "x-forwarded-for",
                "x-other"
            ]
        );
        assert_eq!(connection.persistence(false), Persistence::Close);
        assert_eq!(connection.upgrade(), Upgrade::None);
    }

    #[test]
    fn persistence_depends_on_the_version_and_the_connection_options() {
        for (value, http_1_1, http_1_0) in [
            ("", Persistence::KeepAlive, Persistence::Close),
            ("keep-alive", Persistence::KeepAlive, Persistence::KeepAlive),
            ("close", Persistence::Close, Persistence::Close),
            ("keep-alive, close", Persistence::Close, Persistence::Close),
        ] {
            let (connection, _) = inspect(&[("connection", value)]);
            assert_eq!(
                (connection.persistence(false), connection.persistence(true)),
                (http_1_1, http_1_0),
                "{value}"
            );
        }
    }

    #[test]
    fn an_upgrade_counts_only_if_it_is_a_connection_option() {
        let (connection, _) = inspect(&[("upgrade", "websocket")]);
        assert_eq!(connection.upgrade(), Upgrade::None);
        let (connection, _) = inspect(&[("upgrade", "WebSocket"), ("connection", "Upgrade")]);
        assert_eq!(connection.upgrade(), Upgrade::WebSocket);
        for protocols in [&["h2c"][..], &["websocket, h2c"], &["websocket", "h2c"]] {
            let mut headers = vec![("connection", "upgrade")];
            headers.extend(protocols.iter().map(|protocol| ("upgrade", *protocol)));
            assert_eq!(
                inspect(&headers).0.upgrade(),
                Upgrade::None,
                "{protocols:?}"
            );
        }
    }
}
