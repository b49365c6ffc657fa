//! Where replicas are: a URL of `servers`.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;
use std::num::NonZeroU16;
use std::str::FromStr;

/// How replicas are spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Scheme {
    Http,
    Https,
}

/// A server: a name or address, that may stand for several replicas.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Server {
    pub(crate) scheme: Scheme,
    /// A host name or an IP address, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Scheme {
    /// The port of a URL that names none.
    fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl Server {
    /// What `Host` says in a request to one of its ports (RFC 9110, section 7.2).
    pub(crate) fn authority(&self, port: u16) -> Cow<'_, str> {
        if port == self.scheme.port() {
            self.url_host()
        } else {
            format!("{}:{port}", self.url_host()).into()
        }
    }

    /// The host as a URL has it: an IPv6 address in brackets.
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

    /// `http://host[:port]`, likewise with `https`, `ws` and `wss`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no server: write http://HOST:PORT");
        let (scheme, rest) = text.trim().split_once("://").ok_or_else(wrong)?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" | "ws" => Scheme::Http,
            "https" | "wss" => Scheme::Https,
            _ => return Err(wrong()),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if let Some((_, path)) = authority.split_once('/') {
            return Err(format!(
                "`{text}` has a path, and paths are passed on as clients ask for them: leave it out, \
                 and let clients ask for /{path}/…"
            ));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(wrong)?;
                host.parse::<Ipv6Addr>().map_err(|_| wrong())?;
                (host, port)
            }
            None if authority.matches(':').count() > 1 => {
                return Err(format!(
                    "`{text}` is no server: an IPv6 address is in brackets, as in http://[::1]:8000"
                ));
            }
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse::<NonZeroU16>().map_err(|_| wrong())?.get(),
            None if port.is_empty() => scheme.port(),
            None => return Err(wrong()),
        };
        let is_good = |letter: char| letter.is_ascii_alphanumeric() || ".-_:".contains(letter);
        if host.is_empty() || !host.chars().all(is_good) {
            return Err(wrong());
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
    fn a_host_header_has_brackets_and_a_port_where_they_are_needed() {
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
    fn servers_are_urls_of_a_host_alone() {
        let read = |text: &str| text.parse::<Server>().map(|server| server.to_string());
        assert_eq!(
            read("http://auth-api:8000"),
            Ok("http://auth-api:8000".into())
        );
        assert_eq!(read("ws://10.0.0.1"), Ok("http://10.0.0.1:80".into()));
        assert_eq!(read("https://[::1]/"), Ok("https://[::1]:443".into()));
        assert_eq!(read("http://[::1]:81"), Ok("http://[::1]:81".into()));
        for bad in [
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
            let told = read(bad).unwrap_err();
            assert!(told.ends_with("write http://HOST:PORT"), "{told}");
        }
        for bad in ["http://a:1:2", "http://::1:80", "http://::1"] {
            assert!(read(bad).unwrap_err().contains("in brackets"), "{bad}");
        }
        let told = read("http://x:1/base/v1").unwrap_err();
        assert!(told.contains("let clients ask for /base/v1/…"), "{told}");
    }
}
