//! An account.

use chrono::{DateTime, SecondsFormat, Utc};
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::login::Login;
use super::password::PasswordHash;

/// A row's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct UserId(pub(crate) i64);

/// What a person may see of their own account.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Profile {
    pub(crate) id: UserId,
    pub(crate) login: String,
    #[serde(serialize_with = "as_python_does")]
    pub(crate) created_at: Option<DateTime<Utc>>,
    #[serde(serialize_with = "as_python_does")]
    pub(crate) last_login: Option<DateTime<Utc>>,
}

/// What an operator sees of an account.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) profile: Profile,
    pub(crate) standing: Standing,
}

/// What checking a password needs of an account.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) id: UserId,
    pub(crate) login: Login,
    pub(crate) hash: PasswordHash,
    pub(crate) standing: Standing,
}

/// Whether an account may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Active,
    Disabled,
}

/// Python's `datetime.isoformat()`: six digits of fraction, or none where it is zero.
#[expect(clippy::ref_option, reason = "serde passes the field by reference")]
fn as_python_does<S: Serializer>(
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
    fn times_look_as_python_wrote_them() {
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
