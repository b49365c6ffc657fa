//! Fields that are for one connection, and not for the next one (RFC 9110, section 7.6.1).

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// Of an upgrade to HTTP/2 (RFC 7540, section 3.2.1), which nobody is let through to.
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// The protocol of RFC 6455.
pub(crate) const WEBSOCKET: &str = "websocket";

/// What such fields of one message say.
#[derive(Debug, Default)]
pub(crate) struct Hop {
    options: Vec<HeaderName>,
    upgrade: Option<Upgrade>,
}

/// What the peers of a connection go over to (RFC 9110, section 7.8). Behind any other protocol than
/// this one no request would be seen any more: none is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upgrade {
    WebSocket,
    Nothing,
}

/// What becomes of the connection after a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Persistence {
    Keep,
    Close,
}

/// Where a field goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It ends here.
    Stays,
    Passes,
}

impl Hop {
    /// Looks at a field. Those that frame the body stay too, since the next hop has its own.
    pub(crate) fn look(&mut self, name: &HeaderName, value: &HeaderValue) -> Fate {
        match *name {
            CONNECTION => self.options.extend(
                value
                    .as_bytes()
                    .split(|byte| *byte == b',')
                    .filter_map(|option| HeaderName::from_bytes(option.trim_ascii()).ok()),
            ),
            UPGRADE => {
                let is_good = self.upgrade.is_none()
                    && value.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes());
                self.upgrade = Some(if is_good {
                    Upgrade::WebSocket
                } else {
                    Upgrade::Nothing
                });
            }
            TE | TRAILER | TRANSFER_ENCODING | CONTENT_LENGTH => {}
            _ if [KEEP_ALIVE, PROXY_CONNECTION, HTTP2_SETTINGS].contains(name) => {}
            _ => return Fate::Passes,
        }
        Fate::Stays
    }

    /// What `Connection` names goes too, but for what a message cannot be without.
    pub(crate) fn strike(&self, fields: &mut HeaderMap) {
        for name in &self.options {
            if *name != HOST {
                fields.remove(name);
            }
        }
    }

    fn says(&self, option: &str) -> bool {
        self.options.iter().any(|name| name == option)
    }

    /// RFC 9112, section 9.3.
    pub(crate) fn persistence(&self, is_http_1_0: bool) -> Persistence {
        if self.says("close") || is_http_1_0 && !self.says("keep-alive") {
            Persistence::Close
        } else {
            Persistence::Keep
        }
    }

    pub(crate) fn upgrade(&self) -> Upgrade {
        match self.upgrade {
            Some(upgrade) if self.says("upgrade") => upgrade,
            _ => Upgrade::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &[(&'static str, &'static str)]) -> (Hop, HeaderMap) {
        let (mut hop, mut passed) = (Hop::default(), HeaderMap::new());
        for (name, value) in fields {
            let name = HeaderName::from_static(name);
            let value = HeaderValue::from_static(value);
            if hop.look(&name, &value) == Fate::Passes {
                passed.append(name, value);
            }
        }
        hop.strike(&mut passed);
        (hop, passed)
    }

    #[test]
    fn what_is_for_this_hop_stays_here() {
        let (hop, passed) = read(&[
            ("host", "a"),
            ("connection", "Close, X-Secret ,host,, keep alive"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("x-secret", "s"),
            ("x-other", "o"),
        ]);
        let names: Vec<_> = passed.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["host", "x-other"]);
        assert_eq!(hop.persistence(false), Persistence::Close);
        assert_eq!(hop.upgrade(), Upgrade::Nothing);
    }

    #[test]
    fn a_connection_lasts_unless_its_version_or_a_peer_says_otherwise() {
        for (value, new, old) in [
            ("", Persistence::Keep, Persistence::Close),
            ("keep-alive", Persistence::Keep, Persistence::Keep),
            ("close", Persistence::Close, Persistence::Close),
            ("keep-alive, close", Persistence::Close, Persistence::Close),
        ] {
            let (hop, _) = read(&[("connection", value)]);
            assert_eq!(
                (hop.persistence(false), hop.persistence(true)),
                (new, old),
                "{value}"
            );
        }
    }

    #[test]
    fn an_upgrade_is_one_only_where_the_connection_says_so() {
        let (hop, _) = read(&[("upgrade", "websocket")]);
        assert_eq!(hop.upgrade(), Upgrade::Nothing);
        let (hop, _) = read(&[("upgrade", "WebSocket"), ("connection", "Upgrade")]);
        assert_eq!(hop.upgrade(), Upgrade::WebSocket);
        for protocols in [&["h2c"][..], &["websocket, h2c"], &["websocket", "h2c"]] {
            let mut fields = vec![("connection", "upgrade")];
            fields.extend(protocols.iter().map(|protocol| ("upgrade", *protocol)));
            assert_eq!(read(&fields).0.upgrade(), Upgrade::Nothing, "{protocols:?}");
        }
    }
}
