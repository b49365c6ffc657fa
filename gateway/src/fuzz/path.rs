//! Request targets.

use bytes::Bytes;

use crate::http::syntax::check_target;
use crate::path::{self, RequestTarget};

/// Request target after normalisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Path that patterns and quotas see.
    pub matched: String,
    /// Path and query that are forwarded.
    pub forwarded: Vec<u8>,
}

/// Reads a target as it is in a request line, without fragment.
///
/// # Errors
/// Returns the message for the client if the path is ambiguous or malformed.
///
/// Returns `None` if both versions of HTTP reject it before.
#[must_use]
pub fn read_target(raw: &[u8]) -> Option<Result<Target, String>> {
    check_target(raw).ok()?;
    let mut target = RequestTarget::new(Bytes::copy_from_slice(raw));
    Some(match target.normalise() {
        Ok(()) => Ok(Target {
            matched: target.path().to_owned(),
            forwarded: target.as_bytes().to_vec(),
        }),
        Err(error) => Err(error.to_string()),
    })
}

/// Normalises a path. Returns `None` if it is ambiguous or malformed.
#[must_use]
pub fn normalise_path(path: &[u8]) -> Option<String> {
    path::normalise(path).ok().map(Into::into)
}
