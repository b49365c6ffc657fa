//! Who is asking: the identity that quotas and logs are kept for.
//!
//! A client must not be able to pick its own identity, so `X-Forwarded-For` counts only as far as
//! trusted proxies wrote it (RFC 7239, section 8.1).

use std::net::{IpAddr, Ipv6Addr};

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

/// The header that proxies append their peer to.
pub(crate) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// An address as it counts: an IPv6 client is its /64, since a client has all of one, and an
/// IPv4 address in an IPv6 coat is that IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ClientKey(u128);

impl From<IpAddr> for ClientKey {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().to_bits()),
            IpAddr::V6(v6) => Self(v6.to_bits() >> 64 << 64),
        }
    }
}

/// Whether a peer may say whom it speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// A client: what it says of itself and others is dropped.
    Nobody,
    /// One of `trusted_proxies`.
    Proxy,
}

/// Who is at the other end of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Client {
    /// The client itself, behind any trusted proxy.
    pub(crate) address: IpAddr,
    /// The connection's other end.
    pub(crate) peer: IpAddr,
    pub(crate) trust: Trust,
}

impl Client {
    /// Who sent a request that came from `peer` with these headers.
    pub(crate) fn of(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        let peer = peer.to_canonical();
        if trusted.is_empty() || !is_trusted(peer, trusted) {
            return Self {
                address: peer,
                peer,
                trust: Trust::Nobody,
            };
        }
        Self {
            address: last_untrusted(headers, trusted).unwrap_or(peer),
            peer,
            trust: Trust::Proxy,
        }
    }

    pub(crate) fn key(&self) -> ClientKey {
        ClientKey::from(self.address)
    }
}

fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// The last address that no trusted proxy wrote of another trusted proxy. Where the chain breaks
/// off (a name, rubbish), whoever wrote that is the client as far as we know: nothing is returned
/// beyond it.
fn last_untrusted(headers: &HeaderMap, trusted: &[IpNet]) -> Option<IpAddr> {
    let mut last = None;
    let lines = headers.get_all(FORWARDED_FOR).iter().collect::<Vec<_>>();
    for line in lines.into_iter().rev() {
        for element in line.to_str().ok()?.rsplit(',') {
            let Some(address) = address_of(element.trim()) else {
                return last;
            };
            last = Some(address);
            if !is_trusted(address, trusted) {
                return last;
            }
        }
    }
    last
}

/// `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1` or `[2001:db8::1]:4711`.
fn address_of(element: &str) -> Option<IpAddr> {
    let address = element
        .parse::<IpAddr>()
        .or_else(|_| {
            element
                .parse::<std::net::SocketAddr>()
                .map(|socket| socket.ip())
        })
        .or_else(|_| {
            let inner = element.trim_start_matches('[').trim_end_matches(']');
            inner.parse::<Ipv6Addr>().map(IpAddr::V6)
        });
    address.ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, forwarded: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append(FORWARDED_FOR, line.parse().unwrap());
        }
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        Client::of(peer.parse().unwrap(), &headers, &trusted)
            .address
            .to_string()
    }

    #[test]
    fn a_client_cannot_choose_its_address() {
        assert_eq!(client("192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(
            client("10.0.0.1", &["6.6.6.6, 198.51.100.7"]),
            "198.51.100.7"
        );
        assert_eq!(
            client("10.0.0.1", &["6.6.6.6", "198.51.100.7, 10.9.9.9"]),
            "198.51.100.7"
        );
        assert_eq!(
            client("10.0.0.1", &["6.6.6.6, unknown, 10.2.2.2"]),
            "10.2.2.2"
        );
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["rubbish"]), "10.0.0.1");
        assert_eq!(client("fd00::1", &["[2001:db8::1]:443"]), "2001:db8::1");
        assert_eq!(
            client("::ffff:10.0.0.1", &["198.51.100.7:99"]),
            "198.51.100.7"
        );
    }

    #[test]
    fn an_ipv6_client_is_its_64() {
        let key = |text: &str| ClientKey::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    }
}
