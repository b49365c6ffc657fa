//! Identity of the client behind a request, for quotas and logs.
//!
//! Invariant: a client cannot choose its identity. `X-Forwarded-For` is evaluated from its end, and only
//! as far as its elements were appended by trusted proxies (RFC 7239, section 8.1).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

/// The header to which each proxy appends the address of its peer.
pub(crate) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Key under which a client is counted. An IPv6 client is its /64 network, since one client usually
/// has all addresses of it. An IPv4-mapped IPv6 address is that IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ClientKey(u128);

impl ClientKey {
    /// Returns the key as an integer: the address in its IPv6 form.
    pub(crate) fn bits(self) -> u128 {
        self.0
    }

    /// Returns the key with these [bits](Self::bits), which another process has sent.
    pub(crate) fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// Returns the key folded to 64 bits, as the input of a hash function.
    pub(crate) fn fold(self) -> u64 {
        let folded = (self.0 ^ self.0 >> u64::BITS) & u128::from(u64::MAX);
        u64::try_from(folded).expect("it has 64 bits")
    }
}

impl From<IpAddr> for ClientKey {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().to_bits()),
            IpAddr::V6(v6) => Self(v6.to_bits() >> 64 << 64),
        }
    }
}

/// Trust in the forwarding headers of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerTrust {
    /// The peer is a client: its forwarding headers are removed.
    Untrusted,
    /// The peer is one of `trusted_proxies`: its forwarding headers are kept.
    TrustedProxy,
}

/// Addresses that a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientIdentity {
    /// Address of the client, behind any trusted proxies.
    pub(crate) address: IpAddr,
    pub(crate) trust: PeerTrust,
}

impl ClientIdentity {
    /// Determines the sender of a request that was received from `peer` with `headers`.
    pub(crate) fn of_request(peer: IpAddr, headers: &HeaderMap, trusted_proxies: &[IpNet]) -> Self {
        let peer = peer.to_canonical();
        if trusted_proxies.is_empty() || !is_trusted(peer, trusted_proxies) {
            return Self {
                address: peer,
                trust: PeerTrust::Untrusted,
            };
        }
        Self {
            address: last_untrusted(headers, trusted_proxies).unwrap_or(peer),
            trust: PeerTrust::TrustedProxy,
        }
    }

    pub(crate) fn key(&self) -> ClientKey {
        ClientKey::from(self.address)
    }
}

/// Returns true if the peer of a connection is one of `trusted_proxies`.
pub(crate) fn is_trusted_proxy(peer: IpAddr, trusted_proxies: &[IpNet]) -> bool {
    is_trusted(peer.to_canonical(), trusted_proxies)
}

fn is_trusted(address: IpAddr, trusted_proxies: &[IpNet]) -> bool {
    trusted_proxies
        .iter()
        .any(|network| network.contains(&address))
}

/// Returns the elements of `X-Forwarded-For` in the order in which proxies appended them, all lines
/// together (RFC 9110, section 5.3). Empty ones are skipped (section 5.6.1.2). They are bytes because a
/// client may have sent any.
pub(crate) fn forwarded_for_elements(
    headers: &HeaderMap,
) -> impl DoubleEndedIterator<Item = &[u8]> {
    headers
        .get_all(FORWARDED_FOR)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

/// Returns the number of elements of `X-Forwarded-For` before that of `client`, or of all if none is the client's.
pub(crate) fn elements_before_client(headers: &HeaderMap, client: IpAddr) -> usize {
    let (mut of_client, mut all) = (None, 0);
    for (index, element) in forwarded_for_elements(headers).enumerate() {
        all = index + 1;
        if str::from_utf8(element).ok().and_then(parse_element) == Some(client) {
            of_client = Some(index);
        }
    }
    of_client.unwrap_or(all)
}

/// Returns the last address of `X-Forwarded-For` that is not a trusted proxy, or the first address if all
/// are trusted. An element that is not an address ends the chain: only the addresses after it count, as
/// for nginx's `real_ip_recursive`.
fn last_untrusted(headers: &HeaderMap, trusted_proxies: &[IpNet]) -> Option<IpAddr> {
    let mut last = None;
    for element in forwarded_for_elements(headers).rev() {
        let Some(address) = str::from_utf8(element).ok().and_then(parse_element) else {
            return last;
        };
        last = Some(address);
        if !is_trusted(address, trusted_proxies) {
            return last;
        }
    }
    last
}

/// Parses `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1` or `[2001:db8::1]:4711`.
fn parse_element(element: &str) -> Option<IpAddr> {
    let address = element
        .parse::<IpAddr>()
        .or_else(|_| element.parse::<SocketAddr>().map(|socket| socket.ip()))
        .or_else(|_| {
            let inner = element
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'));
            inner
                .unwrap_or_default()
                .parse::<Ipv6Addr>()
                .map(IpAddr::V6)
        });
    address.ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn client_address(peer: &str, forwarded: &[&str]) -> String {
        client_address_of_bytes(peer, forwarded.iter().map(|line| line.as_bytes()))
    }

    fn client_address_of_bytes<'l>(
        peer: &str,
        forwarded: impl IntoIterator<Item = &'l [u8]>,
    ) -> String {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append(FORWARDED_FOR, HeaderValue::from_bytes(line).unwrap());
        }
        let trusted_proxies = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        ClientIdentity::of_request(peer.parse().unwrap(), &headers, &trusted_proxies)
            .address
            .to_string()
    }

    #[test]
    fn a_client_cannot_choose_its_address() {
        assert_eq!(client_address("192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(
            client_address("10.0.0.1", &["6.6.6.6, 198.51.100.7"]),
            "198.51.100.7"
        );
        assert_eq!(
            client_address("10.0.0.1", &["6.6.6.6", "198.51.100.7, 10.9.9.9"]),
            "198.51.100.7"
        );
        assert_eq!(
            client_address("10.0.0.1", &["6.6.6.6, unknown, 10.2.2.2"]),
            "10.2.2.2"
        );
        assert_eq!(client_address("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client_address("10.0.0.1", &["not an address"]), "10.0.0.1");
        assert_eq!(
            client_address("fd00::1", &["[2001:db8::1]:443"]),
            "2001:db8::1"
        );
        assert_eq!(
            client_address("::ffff:10.0.0.1", &["198.51.100.7:99"]),
            "198.51.100.7"
        );
    }

    #[test]
    fn brackets_that_do_not_pair_are_no_address() {
        for element in ["[[2001:db8::1]]", "[2001:db8::1", "2001:db8::1]", "[]"] {
            let address = client_address("10.0.0.1", &[element, "10.2.2.2"]);
            assert_eq!(address, "10.2.2.2", "{element}");
        }
        assert_eq!(
            client_address("10.0.0.1", &["[2001:db8::1]"]),
            "2001:db8::1"
        );
    }

    #[test]
    fn a_client_cannot_hide_its_address_behind_bytes_that_are_no_address() {
        for lines in [
            &[&b"\xff"[..], b"198.51.100.7"][..],
            &[b"\xff, 198.51.100.7"],
            &[b"6.6.6.6, \xff\xfe,198.51.100.7, 10.9.9.9"],
            &[b"\t, ,", b"198.51.100.7"],
            &[b"198.51.100.7,"],
            &[b"198.51.100.7", b""],
            &[b"198.51.100.7 , ,\t", b",", b"10.9.9.9"],
        ] {
            let address = client_address_of_bytes("10.0.0.1", lines.iter().copied());
            assert_eq!(address, "198.51.100.7", "{lines:?}");
        }
    }

    #[test]
    fn an_ipv6_client_is_identified_by_its_64_network() {
        let key = |text: &str| ClientKey::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    }

    #[test]
    fn elements_before_that_of_the_client_are_not_from_trusted_proxies() {
        let count = |lines: &[&[u8]], client: &str| {
            let lines = lines
                .iter()
                .map(|line| (FORWARDED_FOR, HeaderValue::from_bytes(line).unwrap()));
            elements_before_client(&lines.collect(), client.parse().unwrap())
        };
        let client = "198.51.100.7";
        assert_eq!(count(&[], client), 0);
        assert_eq!(count(&[b"198.51.100.7, 10.9.9.9"], client), 0);
        assert_eq!(
            count(&[b"6.6.6.6, \xff,, 198.51.100.7:99", b"10.9.9.9"], client),
            2
        );
        // The client is the last one that has its address.
        assert_eq!(count(&[b"198.51.100.7, 6.6.6.6, 198.51.100.7"], client), 2);
        assert_eq!(count(&[b"6.6.6.6, [2001:db8::1]"], "2001:db8::1"), 1);
        // None is the client's: it is the peer.
        assert_eq!(count(&[b"6.6.6.6, unknown"], client), 2);
    }

    #[test]
    fn the_peer_of_a_connection_is_a_trusted_proxy_in_either_form_of_its_address() {
        let trusted_proxies = ["10.0.0.0/8".parse().unwrap()];
        let is_trusted = |peer: &str| is_trusted_proxy(peer.parse().unwrap(), &trusted_proxies);
        assert!(is_trusted("10.1.2.3") && is_trusted("::ffff:10.1.2.3"));
        assert!(!is_trusted("192.0.2.1") && !is_trusted("::ffff:192.0.2.1"));
    }
}
