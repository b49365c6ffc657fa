//! User accounts.

use chrono::{DateTime, SecondsFormat, Utc};
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::login::Login;
use super::password_hash::PasswordHash;
use super::session_cutoff::{AuthTime, SessionCutoff};

/// Primary key of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct UserId(pub(crate) i64);

/// Part of an account that its owner may see.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Profile {
    pub(crate) id: UserId,
    pub(crate) login: String,
    #[serde(serialize_with = "serialize_as_isoformat")]
    pub(crate) created_at: Option<DateTime<Utc>>,
    #[serde(serialize_with = "serialize_as_isoformat")]
    pub(crate) last_login: Option<DateTime<Utc>>,
}

/// Profile of an account, and what decides about its sessions.
#[derive(Debug, Clone)]
pub(crate) struct AccountSummary {
    pub(crate) profile: Profile,
    pub(crate) standing: Standing,
}

/// Part of an account that decides about its sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) status: AccountStatus,
    pub(crate) cutoff: SessionCutoff,
}

impl Standing {
    /// Returns whether a session may act for the account, if the store of sessions has it.
    pub(crate) fn permits(&self, auth_time: AuthTime) -> bool {
        self.status == AccountStatus::Active && self.cutoff.permits(auth_time)
    }
}

/// Part of an account that password verification needs.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) id: UserId,
    pub(crate) login: Login,
    pub(crate) hash: PasswordHash,
    pub(crate) standing: Standing,
}

/// Only an active account can be logged in to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AccountStatus {
    Active,
    Disabled,
}

/// Outcome of a request to delete an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeleteOutcome {
    Deleted,
    /// The account was deleted before, never existed, or is not the one that was meant.
    NotFound,
}

impl DeleteOutcome {
    /// Returns the outcome of a statement that has deleted `count` accounts.
    pub(crate) fn of_count(count: u64) -> Self {
        match count {
            0 => Self::NotFound,
            _ => Self::Deleted,
        }
    }
}

/// Serialises like Python's `datetime.isoformat()`: six fractional digits, or none if they are zero.
#[expect(clippy::ref_option, reason = "serde passes the field by reference")]
fn serialize_as_isoformat<S: Serializer>(
    time: &Option<DateTime<Utc>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let Some(time) = time else {
        return serializer.serialize_none();
    };
    let fraction = match time.timestamp_subsec_micros() {
        0 => SecondsFormat::Secs,
        _ => SecondsFormat::Micros,
    };
    serializer.serialize_str(&time.to_rfc3339_opts(fraction, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_serialised_as_python_does() {
        let profile = Profile {
            id: UserId(222),
            login: "cap1".to_owned(),
            created_at: DateTime::from_timestamp_micros(1_763_905_820_191_421),
            last_login: DateTime::from_timestamp_micros(1_763_905_821_000_000),
        };
        assert_eq!(
            serde_json::to_string(&profile).unwrap(),
            r#"{"id":222,"login":"cap1","created_at":"2025-11-23T13:50:20.191421+00:00","last_login":"2025-11-23T13:50:21+00:00"}"#
        );
    }
}
