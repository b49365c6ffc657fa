//! Error of adding an account.

use crate::store::unavailable::Unavailable;

/// Reason an account was not added.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddUserError {
    #[error("the login is taken")]
    LoginTaken,
    /// It contradicts a constraint that an operator has added, or is longer than the column.
    #[error("the database does not accept the login")]
    LoginNotStorable,
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}
