//! Server URLs of the key `servers`.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;
use std::num::NonZeroU16;
use std::str::FromStr;

/// Scheme of the connections to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Scheme {
    Http,
    Https,
}

/// A server: an IP address, or a host name that may resolve to several endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Server {
    pub(crate) scheme: Scheme,
    /// A host name or an IP address, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Scheme {
    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl Server {
    /// Returns the `Host` header of a request to one of its ports (RFC 9110, section 7.2).
    pub(crate) fn authority(&self, port: u16) -> Cow<'_, str> {
        if port == self.scheme.default_port() {
            self.url_host()
        } else {
            format!("{}:{port}", self.url_host()).into()
        }
    }

    /// Returns the host as in a URL: an IPv6 address is in brackets.
    fn url_host(&self) -> Cow<'_, str> {
        if self.host.contains(':') {
            format!("[{}]", self.host).into()
        } else {
            self.host.as_str().into()
        }
    }
}

impl FromStr for Server {
    type Err = String;

    /// Parses `http://host[:port]`; the scheme may also be `https`, `ws` or `wss`.
    fn from_str(text: &str) -> Result<Self, String> {
        let not_a_server = || format!("`{text}` is not a server URL: write http://HOST:PORT");
        let (scheme, rest) = text.trim().split_once("://").ok_or_else(not_a_server)?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" | "ws" => Scheme::Http,
            "https" | "wss" => Scheme::Https,
            _ => return Err(not_a_server()),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if let Some((_, path)) = authority.split_once('/') {
            return Err(format!(
                "`{text}` has a path, but the path of a request is forwarded as it is: remove it, and \
                 let clients request /{path}/…"
            ));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(not_a_server)?;
                host.parse::<Ipv6Addr>().map_err(|_| not_a_server())?;
                (host, port)
            }
            None if authority.matches(':').count() > 1 => {
                return Err(format!(
                    "`{text}` is not a server URL: write IPv6 addresses in brackets, as in http://[::1]:8000"
                ));
            }
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port
                .parse::<NonZeroU16>()
                .map_err(|_| not_a_server())?
                .get(),
            None if port.is_empty() => scheme.default_port(),
            None => return Err(not_a_server()),
        };
        let is_host_character =
            |character: char| character.is_ascii_alphanumeric() || ".-_:".contains(character);
        if host.is_empty() || !host.chars().all(is_host_character) {
            return Err(not_a_server());
        }
        Ok(Self {
            scheme,
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        write!(formatter, "{scheme}://{}:{}", self.url_host(), self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_header_has_brackets_and_a_port_if_needed() {
        for (server, port, host) in [
            ("http://auth-api", 80, "auth-api"),
            ("http://auth-api:8000", 8000, "auth-api:8000"),
            ("https://auth-api", 443, "auth-api"),
            ("https://auth-api", 80, "auth-api:80"),
            ("http://[::1]:8000", 8000, "[::1]:8000"),
            ("http://[::1]", 80, "[::1]"),
        ] {
            let server: Server = server.parse().unwrap();
            assert_eq!(server.authority(port), host, "{server}");
        }
    }

    #[test]
    fn a_server_url_has_only_scheme_host_and_port() {
        let parse = |text: &str| text.parse::<Server>().map(|server| server.to_string());
        assert_eq!(
            parse("http://auth-api:8000"),
            Ok("http://auth-api:8000".into())
        );
        assert_eq!(parse("ws://10.0.0.1"), Ok("http://10.0.0.1:80".into()));
        assert_eq!(parse("https://[::1]/"), Ok("https://[::1]:443".into()));
        assert_eq!(parse("http://[::1]:81"), Ok("http://[::1]:81".into()));
        for invalid in [
            "auth-api:8000",
            "ftp://x",
            "http://",
            "http://x:0",
            "http://x:y",
            "http://x:",
            "http://u@x",
            "http://[x]:1",
            "http://[::1",
            "http://[::1]1",
            "http://x?y",
        ] {
            let error = parse(invalid).unwrap_err();
            assert!(error.ends_with("write http://HOST:PORT"), "{error}");
        }
        for invalid in ["http://a:1:2", "http://::1:80", "http://::1"] {
            assert!(
                parse(invalid).unwrap_err().contains("in brackets"),
                "{invalid}"
            );
        }
        let error = parse("http://x:1/base/v1").unwrap_err();
        assert!(error.contains("let clients request /base/v1/…"), "{error}");
    }
}
