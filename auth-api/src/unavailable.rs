//! A store that does not answer: an outage, never a wrong answer.

/// Names the store; what went wrong is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is unavailable")]
pub(crate) struct Unavailable(pub(crate) &'static str);

impl Unavailable {
    /// Logs what happened and keeps the store's name.
    pub(crate) fn because(store: &'static str, error: &dyn std::fmt::Display) -> Self {
        tracing::error!(store, %error, "a store failed");
        Self(store)
    }
}
