//! Caching of responses.

/// Caches that may store a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CachePolicy {
    Public,
    /// No cache: the response contains tokens, personal data or the result of an authentication.
    NoStore,
}

impl CachePolicy {
    pub(super) fn of_path(path: &str) -> Self {
        if path.starts_with("/api/") || path.starts_with("/oauth/") {
            Self::NoStore
        } else {
            Self::Public
        }
    }
}
