//! Time up to which the sessions of an account have ended.

use chrono::{DateTime, Utc};

/// Time at which the user's password was last verified in a session (`auth_time` of `OpenID`
/// Connect), in microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct AuthTime(pub(crate) i64);

/// Time up to which every session of a user has ended: a session is active only if its [`AuthTime`]
/// is later. It is stored with the account, so it holds whatever the store of sessions has lost.
///
/// Clocks of replicas may differ, so times are also ordered by cause, as in a hybrid logical clock
/// (Kulkarni et al. 2014): a login reads the cutoff and gets a later time, and a new cutoff is not
/// earlier than the latest login and than the session that the last change of the password has kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SessionCutoff(i64);

impl SessionCutoff {
    /// Converts a stored time, in microseconds since 1970. Without one, no session has ended.
    pub(crate) fn from_micros(micros: Option<i64>) -> Self {
        Self(micros.unwrap_or(i64::MIN))
    }

    pub(crate) fn micros(self) -> i64 {
        self.0
    }

    pub(crate) fn permits(self, auth_time: AuthTime) -> bool {
        auth_time.0 > self.0
    }

    /// Returns the time of a password verification at `now`, which is later than the cutoff and than
    /// [`Self::kept_auth_time`].
    pub(crate) fn next_auth_time(self, now: DateTime<Utc>) -> AuthTime {
        AuthTime(now.timestamp_micros().max(self.0.saturating_add(2)))
    }

    /// Returns the time of the session that a change of the password to this cutoff keeps. The next cutoff is not
    /// earlier, whatever the clock of its replica says.
    pub(crate) fn kept_auth_time(self) -> AuthTime {
        AuthTime(self.0.saturating_add(1))
    }
}

impl AuthTime {
    /// Returns the time as it is stored with an account.
    pub(crate) fn to_utc(self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.0).unwrap_or(DateTime::<Utc>::MAX_UTC)
    }

    /// Returns the latest cutoff that permits the session.
    pub(crate) fn latest_cutoff(self) -> DateTime<Utc> {
        Self(self.0.saturating_sub(1)).to_utc()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_login_is_after_the_cutoff_that_it_has_read_whatever_the_clock_says() {
        let now = DateTime::from_timestamp_micros(1_795_441_820_191_421).unwrap();
        let hour = Duration::from_hours(1);
        for cutoff in [now - hour, now, now + hour] {
            let cutoff = SessionCutoff::from_micros(Some(cutoff.timestamp_micros()));
            let auth_time = cutoff.next_auth_time(now);
            assert!(cutoff.permits(auth_time));
            assert!(auth_time.to_utc() >= now);
            let kept = cutoff.kept_auth_time();
            assert!(cutoff.permits(kept) && kept < auth_time);
            let latest = auth_time.latest_cutoff().timestamp_micros();
            assert!(SessionCutoff::from_micros(Some(latest)).permits(auth_time));
        }
        let never = SessionCutoff::from_micros(Some(i64::MAX));
        assert!(!never.permits(never.next_auth_time(now)));
        assert!(SessionCutoff::from_micros(None).permits(AuthTime(0)));
    }
}
