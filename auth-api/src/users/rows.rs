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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::session_cutoff::AuthTime;

    #[test]
    fn an_account_with_any_login_and_hash_is_read() {
        let bcrypt = "$2b$12$DCq7YPn5Rq63x1Lad4cll.TV4S6ytwfsfvkgY8jIucDrjc8deX1s.";
        for (login, hash, has_password) in [
            ("alice", bcrypt, true),
            ("alice", "", false),
            (" \0", "!", false),
        ] {
            let account = to_account(7, login.to_owned(), hash.to_owned(), false, None);
            assert_eq!((account.id, account.login.as_str()), (UserId(7), login));
            assert_eq!(account.hash.as_str(), hash);
            assert_eq!(account.hash.as_bcrypt().is_some(), has_password);
        }
    }

    #[test]
    fn sessions_act_for_an_account_that_is_enabled_if_they_began_after_its_cutoff() {
        for (is_disabled, valid_after, auth_time, is_permitted) in [
            (false, None, i64::MIN + 1, true),
            (false, Some(5), 6, true),
            (false, Some(5), 5, false),
            (true, None, 6, false),
            (true, Some(5), 6, false),
        ] {
            let standing = to_standing(is_disabled, valid_after);
            assert_eq!(standing.permits(AuthTime(auth_time)), is_permitted);
        }
    }
}
