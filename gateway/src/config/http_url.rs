//! URLs of resources that the gateway itself requests.

use std::fmt;
use std::str::FromStr;

use crate::config::server::Server;

/// URL of a resource: a server and a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpUrl {
    pub(crate) server: Server,
    /// Path, and query if there is one.
    pub(crate) path: String,
}

impl HttpUrl {
    /// Returns another resource of the same server.
    pub(crate) fn with_path(&self, path: &str) -> Self {
        Self {
            server: self.server.clone(),
            path: path.to_owned(),
        }
    }
}

impl FromStr for HttpUrl {
    type Err = String;

    /// Parses `http://host[:port]/path`; the scheme may also be `https`.
    fn from_str(text: &str) -> Result<Self, String> {
        let not_a_url = || format!("`{text}` is not a URL: write http://HOST:PORT/PATH");
        let (scheme, rest) = text.trim().split_once("://").ok_or_else(not_a_url)?;
        let path_start = rest.find('/').ok_or_else(not_a_url)?;
        let (authority, path) = rest.split_at(path_start);
        let is_http = ["http", "https"]
            .iter()
            .any(|known| scheme.eq_ignore_ascii_case(known));
        let is_path = path
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'#');
        if !is_http || !is_path {
            return Err(not_a_url());
        }
        Ok(Self {
            server: format!("{scheme}://{authority}").parse()?,
            path: path.to_owned(),
        })
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{}", self.server, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_server_and_a_path() {
        let parse = |text: &str| text.parse::<HttpUrl>().map(|url| url.to_string());
        for (text, expected) in [
            ("http://a/keys.json", "http://a:80/keys.json"),
            ("HTTPS://[::1]:8443/a?b=c", "https://[::1]:8443/a?b=c"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(expected));
        }
        for invalid in [
            "http://a",
            "a/b",
            "ftp://a/b",
            "ws://a/b",
            "http://u@a/b",
            "http://a/b c",
            "http://a/b#c",
        ] {
            let error = parse(invalid).unwrap_err();
            assert!(error.contains("write http://HOST"), "{invalid}: {error}");
        }
    }
}
