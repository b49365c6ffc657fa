//! Invalidations that were received a short time ago.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use crate::generation::Owner;
use crate::lease::LEASE_DURATION;
use crate::message::Invalidated;

/// Number of invalidations (about 4 MiB) beyond which all sessions count as invalidated.
const MAX_RECENT: usize = 65_536;

/// Invalidations of the last [`LEASE_DURATION`].
#[derive(Debug, Default)]
pub(crate) struct RecentInvalidations {
    in_order: VecDeque<(Invalidated, Instant)>,
    last: HashMap<Invalidated, Instant>,
    last_of_all: Option<Instant>,
}

impl RecentInvalidations {
    pub(crate) fn record(&mut self, invalidated: Invalidated, now: Instant) {
        if invalidated == Invalidated::AllSessions {
            return self.record_all(now);
        }
        while let Some((oldest, received)) = self.in_order.front().copied()
            && !is_recent(received, now)
        {
            self.in_order.pop_front();
            if self.last.get(&oldest) == Some(&received) {
                self.last.remove(&oldest);
            }
        }
        if self.in_order.len() >= MAX_RECENT {
            self.record_all(now);
        }
        self.in_order.push_back((invalidated, now));
        self.last.insert(invalidated, now);
    }

    /// Records that any session may have been invalidated.
    pub(crate) fn record_all(&mut self, now: Instant) {
        *self = Self {
            last_of_all: Some(now),
            ..Self::default()
        };
    }

    /// Returns whether a session was invalidated less than [`LEASE_DURATION`] before `time`.
    pub(crate) fn include(&self, owner: Owner, time: Instant) -> bool {
        let last = |invalidated| self.last.get(&invalidated).copied();
        [
            last(Invalidated::Session(owner.session)),
            last(Invalidated::SessionsOf(owner.user)),
            self.last_of_all,
        ]
        .into_iter()
        .flatten()
        .any(|received| is_recent(received, time))
    }
}

fn is_recent(received: Instant, time: Instant) -> bool {
    time < received + LEASE_DURATION
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{SessionId, UserId};

    fn owner(user: i64) -> Owner {
        Owner {
            user: UserId(user),
            session: SessionId::random(),
        }
    }

    #[test]
    fn an_invalidation_is_recent_for_the_duration_of_a_lease() {
        let (mut recent, now) = (RecentInvalidations::default(), Instant::now());
        let (by_session, by_user, other) = (owner(1), owner(2), owner(3));
        recent.record(Invalidated::Session(by_session.session), now);
        recent.record(Invalidated::SessionsOf(by_user.user), now);
        for (owner, expected) in [(by_session, true), (by_user, true), (other, false)] {
            assert_eq!(recent.include(owner, now), expected);
            assert!(!recent.include(owner, now + LEASE_DURATION));
        }
        let later = now + LEASE_DURATION;
        recent.record(Invalidated::Session(other.session), later);
        assert_eq!((recent.in_order.len(), recent.last.len()), (1, 1));
    }

    #[test]
    fn a_repeated_invalidation_is_recent_from_the_last_time() {
        let (mut recent, now) = (RecentInvalidations::default(), Instant::now());
        let ended = owner(1);
        let half = LEASE_DURATION / 2;
        for time in [now, now + half, now + LEASE_DURATION] {
            recent.record(Invalidated::Session(ended.session), time);
        }
        assert!(recent.include(ended, now + LEASE_DURATION + half));
        assert_eq!((recent.in_order.len(), recent.last.len()), (2, 1));
    }

    #[test]
    fn too_many_invalidations_count_as_one_of_all_sessions() {
        let (mut recent, now) = (RecentInvalidations::default(), Instant::now());
        for _ in 0..=MAX_RECENT {
            recent.record(Invalidated::Session(SessionId::random()), now);
        }
        assert_eq!(recent.in_order.len(), 1);
        assert!(recent.include(owner(1), now));
        assert!(!recent.include(owner(1), now + LEASE_DURATION));
    }
}
