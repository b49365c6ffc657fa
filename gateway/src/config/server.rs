//! Where replicas are: a URL of `servers`.

use std::fmt;
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

impl FromStr for Server {
    type Err = String;

    /// `http://host[:port]`, likewise with `https`, `ws` and `wss`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no server: write http://HOST:PORT");
        let (scheme, rest) = text.trim().split_once("://").ok_or_else(wrong)?;
        let (scheme, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "http" | "ws" => (Scheme::Http, 80),
            "https" | "wss" => (Scheme::Https, 443),
            _ => return Err(wrong()),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match authority.rsplit_once(':') {
            // A bare IPv6 address in brackets has colons and no port.
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| wrong())?)
            }
            _ => (authority, default_port),
        };
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let is_good = |letter: char| letter.is_ascii_alphanumeric() || ".-_:".contains(letter);
        if host.is_empty() || port == 0 || !host.chars().all(is_good) {
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
        if self.host.contains(':') {
            write!(formatter, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            "http://x/y",
            "http://u@x",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
