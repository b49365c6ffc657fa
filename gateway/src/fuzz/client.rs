//! Identity of clients, and hosts.

use std::net::IpAddr;

use http::{HeaderMap, HeaderValue};
use ipnet::IpNet;

use crate::client::{ClientIdentity, FORWARDED_FOR};
use crate::http::syntax::{host_name, is_authority, without_port};

/// Client that a request is attributed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    pub address: IpAddr,
    /// Key of its quotas.
    pub key: u128,
}

/// Determines the client behind a request from `peer` with these lines of `X-Forwarded-For`. Returns `None` if a
/// line is no header value.
#[must_use]
pub fn identify_client(
    peer: IpAddr,
    forwarded_for: &[&[u8]],
    trusted_proxies: &[IpNet],
) -> Option<Client> {
    let mut headers = HeaderMap::new();
    for line in forwarded_for {
        headers.append(FORWARDED_FOR, HeaderValue::from_bytes(line).ok()?);
    }
    let identity = ClientIdentity::of_request(peer, &headers, trusted_proxies);
    Some(Client {
        address: identity.address,
        key: identity.key().bits(),
    })
}

/// Returns a `Host` without its port, and the name by which it is compared; `None` if it is rejected.
#[must_use]
pub fn parse_authority(host: &[u8]) -> Option<(&str, &str)> {
    let text = str::from_utf8(host).ok().filter(|_| is_authority(host))?;
    Some((without_port(text), host_name(text)))
}
