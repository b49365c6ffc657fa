//! Error of a store that is unavailable or returns invalid data.

use crate::store::check::CheckError;

/// Store outage, which is never reported as a wrong result. The cause is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{store} is unavailable")]
pub(crate) struct Unavailable {
    store: &'static str,
    /// Kind of the cause, for operators.
    problem: CheckError,
}

impl Unavailable {
    /// Logs the cause and returns the error, which names the store only.
    pub(crate) fn because(store: &'static str, error: &dyn std::fmt::Display) -> Self {
        Self::with_problem(store, CheckError::Unavailable, error)
    }

    /// Like [`Self::because`], for a cause of a known kind.
    pub(crate) fn with_problem(
        store: &'static str,
        problem: CheckError,
        error: &dyn std::fmt::Display,
    ) -> Self {
        tracing::error!(store, %error, "store operation failed");
        Self { store, problem }
    }
}

impl From<Unavailable> for CheckError {
    fn from(error: Unavailable) -> Self {
        error.problem
    }
}
