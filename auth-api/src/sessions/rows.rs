//! Conversion of stored sessions that both stores have in common.

use chrono::{DateTime, Utc};
use thiserror::Error;

use crate::domain::principal::SessionId;
use crate::domain::session::{ActiveSession, ClientInfo};
use crate::domain::session_cutoff::AuthTime;
use crate::domain::time;

/// Listed session: id, times of creation and last use in the unit of the store, address, user agent, time of the
/// password's verification (µs since 1970).
pub(crate) type SessionRow = (String, i64, i64, String, String, i64);

/// Reason a stored session cannot be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum DamagedSession {
    #[error("a stored session has an invalid id")]
    Id,
    #[error("a stored session has a time out of range")]
    Time,
}

/// Converts a row, whose times `to_time` converts.
pub(crate) fn to_active_session(
    (id, created, used, address, user_agent, auth_time): SessionRow,
    to_time: impl Fn(i64) -> Option<DateTime<Utc>>,
) -> Result<ActiveSession, DamagedSession> {
    let time = |stored| to_time(stored).ok_or(DamagedSession::Time);
    Ok(ActiveSession {
        id: SessionId::parse(&id).ok_or(DamagedSession::Id)?,
        auth_time: AuthTime(auth_time),
        created_at: time(created)?,
        last_used: time(used)?,
        client: ClientInfo {
            address,
            user_agent,
        },
    })
}

/// Converts milliseconds since 1970. Returns `None` for a time that clients cannot represent.
pub(crate) fn time_from_millis(millis: i64) -> Option<DateTime<Utc>> {
    millis.checked_mul(1000).and_then(time::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_shown_as_it_was_stored() {
        let id = SessionId::random();
        let row = |id: &str| {
            let (address, user_agent) = ("192.0.2.1".to_owned(), "curl".to_owned());
            (id.to_owned(), 1000, 2000, address, user_agent, 3)
        };
        let session = to_active_session(row(&id.to_string()), time_from_millis).unwrap();
        let shown = [session.created_at, session.last_used].map(|time| time.to_rfc3339());
        assert_eq!(
            shown,
            ["1970-01-01T00:00:01+00:00", "1970-01-01T00:00:02+00:00"]
        );
        assert_eq!((session.id, session.auth_time), (id, AuthTime(3)));
        assert_eq!(session.client.address, "192.0.2.1");
        assert_eq!(session.client.user_agent, "curl");
        for damaged in ["", "x", &id.to_string()[1..]] {
            let damaged = to_active_session(row(damaged), time_from_millis);
            assert_eq!(damaged, Err(DamagedSession::Id));
        }
    }

    #[test]
    fn a_session_with_times_that_clients_cannot_represent_is_damaged() {
        let id = SessionId::random().to_string();
        let session = |created, used| {
            let row = (id.clone(), created, used, String::new(), String::new(), 0);
            to_active_session(row, time_from_millis)
        };
        let (now, year_10000, year_0) =
            (1_800_000_000_000, 253_402_300_800_000, -62_135_596_800_001);
        assert!(session(now, now).is_ok());
        for other in [year_10000, year_0, i64::MAX, i64::MIN] {
            assert_eq!(session(other, now), Err(DamagedSession::Time));
            assert_eq!(session(now, other), Err(DamagedSession::Time));
        }
    }
}
