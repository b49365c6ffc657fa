//! Names of hosts by which a listener for operators may be asked.

use std::net::IpAddr;

/// Top-level domains that are reserved for names in private networks (RFC 6761, RFC 6762; ICANN Board
/// resolution 2024.07.29.06 for `internal`).
const INTERNAL_DOMAINS: [&str; 3] = ["localhost", "local", "internal"];

/// Returns whether a host is an address or a name that no public domain can have. A web page could make
/// the browser of an operator send requests to a public name that resolves to the listener, and read the
/// responses (DNS rebinding). `name` is without port, without the brackets of an IPv6 address and
/// without the dot that ends a fully qualified name.
#[must_use]
pub fn is_internal_name(name: &str) -> bool {
    let domain = name.rsplit_once('.').map(|(_, domain)| domain);
    name.parse::<IpAddr>().is_ok()
        || domain.is_none_or(|domain| {
            INTERNAL_DOMAINS
                .iter()
                .any(|internal| domain.eq_ignore_ascii_case(internal))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_internal_if_no_public_domain_can_have_it() {
        for name in [
            "127.0.0.1",
            "::1",
            "localhost",
            "LOCALHOST",
            "gateway",
            "tasks.gateway.internal",
            "gateway.default.svc.cluster.local",
        ] {
            assert!(is_internal_name(name), "{name}");
        }
        for name in ["evil.example", "127.0.0.1.evil.example", "1.2.3"] {
            assert!(!is_internal_name(name), "{name}");
        }
    }
}
