//! Path prefixes of the key `strip_prefix`.

use std::fmt;
use std::str::FromStr;

use crate::config::pattern::normalised_path;

/// Prefix of whole path segments, in the normalised form of the paths that patterns match: `/orders`, without
/// a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PathPrefix(String);

impl PathPrefix {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PathPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = normalised_path(text).map_err(|problem| format!("`{text}` {problem}"))?;
        match path.strip_suffix('/') {
            None => Ok(Self(path)),
            Some("") => Err("`/` removes nothing: leave `strip_prefix` out".to_owned()),
            Some(prefix) => Err(format!(
                "`{text}` ends with a slash: write {prefix}, which is removed from {prefix} and from \
                 {prefix}/…"
            )),
        }
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}
