//! Host patterns of the key `hosts`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// Maximum length of a host name in its text form (RFC 1035, section 2.3.4).
const MAX_NAME_LENGTH: usize = 253;
/// Maximum length of a label (RFC 1035, section 2.3.4).
const MAX_LABEL_LENGTH: usize = 63;
const WILDCARD: &str = "*.";

/// Host name in lower case, IP address, or `*.` before a name, which stands for exactly one label, as in
/// certificates (RFC 9525, section 6.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostPattern(String);

impl HostPattern {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether it matches every host that `other` matches.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.0 == other.0 || Some(&self.0) == wildcard(&other.0).as_ref()
    }

    /// Returns whether a certificate with these names is valid for every host that it matches.
    pub(super) fn is_covered_by(&self, names: &[String]) -> bool {
        let wildcard = wildcard(&self.0);
        names
            .iter()
            .any(|name| *name == self.0 || Some(name) == wildcard.as_ref())
    }
}

/// Returns the wildcard name that covers `name`: `*.example.org` for `www.example.org` (RFC 9525,
/// section 6.3). None covers a wildcard name or an IP address.
pub(crate) fn wildcard(name: &str) -> Option<String> {
    if name.starts_with(WILDCARD) || name.parse::<IpAddr>().is_ok() {
        return None;
    }
    let (_, parent) = name.split_once('.')?;
    Some(format!("{WILDCARD}{parent}"))
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let not_a_host = || {
            format!(
                "`{text}` is not a host: write a name alone, as in shop.example.org or *.example.org"
            )
        };
        if !text.is_ascii() {
            return Err(format!(
                "`{text}` has characters outside ASCII: write the name in Punycode, as browsers send it \
                 (xn--…)"
            ));
        }
        let address = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text);
        if let Ok(address) = address.parse::<Ipv6Addr>() {
            return Ok(Self(address.to_string()));
        }
        if text.contains('/') {
            return Err(not_a_host());
        }
        if text == "*" {
            return Err("`*` is not a host: leave `hosts` out to match every host".to_owned());
        }
        if text.contains(':') {
            return Err(format!(
                "`{text}` has a port, but hosts match with any port: remove it"
            ));
        }
        let lower_case = text.to_ascii_lowercase();
        let full_name = lower_case.strip_suffix('.').unwrap_or(&lower_case);
        let name = full_name.strip_prefix(WILDCARD).unwrap_or(full_name);
        if name.contains('*') {
            return Err(format!(
                "`{text}` is not a host: `*` stands only for the whole first label, as in *.example.org"
            ));
        }
        if full_name.len() > MAX_NAME_LENGTH
            || !name.as_bytes().split(|byte| *byte == b'.').all(is_label)
        {
            return Err(not_a_host());
        }
        Ok(Self(full_name.to_owned()))
    }
}

/// Returns whether a text is one label of a name.
pub(super) fn is_label(label: &[u8]) -> bool {
    let is_label_byte = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=MAX_LABEL_LENGTH).contains(&label.len()) && label.iter().all(is_label_byte)
}

impl fmt::Display for HostPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_an_address_or_a_wildcard_of_one_label() {
        for (text, normal_form) in [
            ("shop.example.org", "shop.example.org"),
            ("Shop.Example.ORG.", "shop.example.org"),
            ("*.Example.org", "*.example.org"),
            ("localhost", "localhost"),
            ("10.0.0.1", "10.0.0.1"),
            ("[0:0::1]", "::1"),
            ("::1", "::1"),
        ] {
            let host: HostPattern = text.parse().unwrap();
            assert_eq!(host.as_str(), normal_form);
        }
    }

    #[test]
    fn an_invalid_host_is_rejected_with_the_reason() {
        let long_label = "a".repeat(64);
        let problems: String = [
            "",
            "*",
            "https://shop.example.org",
            "shop.example.org/orders",
            "shop.example.org:443",
            "[::1]:443",
            "shop..org",
            "*.",
            "*shop.org",
            "a.*.org",
            "bücher.example",
            "a b",
            &long_label,
        ]
        .map(|text| text.parse::<HostPattern>().unwrap_err() + "\n")
        .concat();
        insta::assert_snapshot!(problems);
    }

    #[test]
    fn a_wildcard_covers_names_with_one_more_label() {
        let covers = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|text| text.parse::<HostPattern>().unwrap());
            one.covers(&other)
        };
        assert!(covers("*.example.org", "shop.example.org"));
        assert!(covers("*.example.org", "*.example.org"));
        assert!(covers("a.org", "a.org"));
        for (one, other) in [
            ("*.example.org", "example.org"),
            ("*.example.org", "a.b.example.org"),
            ("*.org", "*.example.org"),
            ("*.0.0.1", "10.0.0.1"),
            ("shop.example.org", "*.example.org"),
        ] {
            assert!(!covers(one, other), "{one} {other}");
        }
    }
}
