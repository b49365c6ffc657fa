//! Error of a store that is unavailable or returns invalid data.

/// Store outage, which is never reported as a wrong result. The cause is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is unavailable")]
pub(crate) struct Unavailable(&'static str);

impl Unavailable {
    /// Logs the cause and returns the error, which names the store only.
    pub(crate) fn because(store: &'static str, error: &dyn std::fmt::Display) -> Self {
        tracing::error!(store, %error, "store operation failed");
        Self(store)
    }
}
