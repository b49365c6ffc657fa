//! Conversion of database rows that both stores have in common.

use crate::domain::login::Login;
use crate::domain::password_hash::PasswordHash;
use crate::domain::session_cutoff::SessionCutoff;
use crate::domain::user::{Account, AccountStatus, Standing, UserId};

/// Converts a row. If its hash is not a bcrypt hash, no password matches until an operator sets one.
pub(crate) fn to_account(
    id: i64,
    login: String,
    hash: String,
    is_disabled: bool,
    valid_after: Option<i64>,
) -> Account {
    let hash = PasswordHash::from_stored(hash);
    if hash.as_bcrypt().is_none() {
        tracing::warn!(
            user = id,
            "stored password hash is not a bcrypt hash: fix it with `auth-api user set-password`"
        );
    }
    Account {
        id: UserId(id),
        login: Login::from_stored(login),
        hash,
        standing: to_standing(is_disabled, valid_after),
    }
}

/// Converts the columns that decide about an account's sessions; `valid_after` is in µs since 1970.
pub(super) fn to_standing(is_disabled: bool, valid_after: Option<i64>) -> Standing {
    Standing {
        status: if is_disabled {
            AccountStatus::Disabled
        } else {
            AccountStatus::Active
        },
        cutoff: SessionCutoff::from_micros(valid_after),
    }
}
