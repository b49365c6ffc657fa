//! The time that a whole exchange with the replicas may take, waits between tries included. The time
//! in which the client sends its request or takes its answer is not theirs.

use std::time::Duration;

use crate::config::{Refusal, Timeout};
use crate::moment::{Moment, nanoseconds};

/// How long a replica may be silent where no `timeout` says otherwise.
pub(crate) const LONGEST_SILENCE: Duration = Duration::from_mins(1);
/// A replica is near: what takes longer to connect is not there.
const LONGEST_CONNECT: Duration = Duration::from_secs(2);

/// When an exchange has to be over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline(Option<Moment>);

impl Deadline {
    pub(crate) const NONE: Self = Self(None);

    /// The deadline of an exchange that begins now.
    pub(crate) fn of(timeout: Option<&Timeout>, now: Moment) -> Self {
        Self(timeout.map(|timeout| Moment(now.0.saturating_add(nanoseconds(timeout.limit)))))
    }

    pub(crate) fn is_over(self, now: Moment) -> bool {
        self.0.is_some_and(|end| end <= now)
    }

    /// The same, when for so long it was not the replicas' turn.
    pub(crate) fn later_by(self, waited: Duration) -> Self {
        let later = |end: Moment| Moment(end.0.saturating_add(nanoseconds(waited)));
        Self(self.0.map(later))
    }

    /// What is left, `None` where there is no deadline.
    pub(crate) fn left(self, now: Moment) -> Option<Duration> {
        self.0.map(|end| end.since(now))
    }

    /// How long a replica may take to be connected.
    pub(crate) fn patience(self, now: Moment) -> Duration {
        match self.left(now) {
            None => LONGEST_CONNECT,
            // A time-out of nothing would mean none at all.
            Some(left) => left.clamp(Duration::from_millis(1), LONGEST_CONNECT),
        }
    }
}

/// How a request is answered whose time is over; `None` for the usual way.
pub(crate) fn refusal(timeout: Option<&Timeout>) -> Option<&Refusal> {
    timeout.map(|timeout| &timeout.refusal)
}
