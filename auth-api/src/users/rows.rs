//! Conversion of database rows that both stores have in common.

use crate::domain::login::Login;
use crate::domain::password_hash::PasswordHash;
use crate::domain::user::{Account, AccountStatus, UserId};

/// Converts a row. If its hash is not a bcrypt hash, no password matches until an operator sets one.
pub(super) fn to_account(id: i64, login: &Login, hash: String, is_disabled: bool) -> Account {
    let hash = PasswordHash::from_stored(hash);
    if hash.as_bcrypt().is_none() {
        tracing::warn!(
            user = id,
            "stored password hash is not a bcrypt hash: fix it with `auth-api user set-password`"
        );
    }
    Account {
        id: UserId(id),
        login: login.clone(),
        hash,
        status: to_status(is_disabled),
    }
}

pub(super) fn to_status(is_disabled: bool) -> AccountStatus {
    if is_disabled {
        AccountStatus::Disabled
    } else {
        AccountStatus::Active
    }
}
