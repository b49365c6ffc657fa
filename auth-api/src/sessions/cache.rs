//! Sessions that were found live a moment ago, so that a warm replica need not ask Redis again.
//!
//! An entry is believed for [`TRUST`] at most, and only while the line is up on which Redis tells
//! of sessions that ended; when that is lost everything is forgotten and nothing new is kept. A
//! session that ends while we are asking about it is never kept either: each look at the store is
//! taken with the count of endings heard so far, and kept only if that is still the same.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::domain::session::SessionId;
use crate::domain::token::Principal;
use crate::domain::user::UserId;

const TRUST: Duration = Duration::from_secs(3);
/// Past so many everything is forgotten: 1 MiB.
const MOST: usize = 10_000;

/// What this replica remembers.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    line: Line,
    endings: u64,
    live: HashMap<SessionId, (UserId, Instant)>,
}

/// Whether we are told of endings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Line {
    Up,
    #[default]
    Down,
}

/// What was heard when a look at the store began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heard(u64);

impl Cache {
    /// Whether a session is known to live; if not, what was heard so far.
    pub(super) fn knows(&self, principal: Principal, now: Instant) -> Result<(), Heard> {
        let memory = self.0.lock();
        match memory.live.get(&principal.session) {
            Some((user, until)) if *user == principal.user && *until > now => Ok(()),
            _ => Err(Heard(memory.endings)),
        }
    }

    /// Keeps that a session lives, unless something ended since the look at the store began.
    pub(super) fn keep(&self, principal: Principal, heard: Heard, now: Instant) {
        let mut memory = self.0.lock();
        if memory.line == Line::Down || memory.endings != heard.0 {
            return;
        }
        if memory.live.len() >= MOST {
            memory.live.clear();
        }
        let entry = (principal.user, now + TRUST);
        memory.live.insert(principal.session, entry);
    }

    /// A session has ended.
    pub(super) fn forget(&self, session: SessionId) {
        let mut memory = self.0.lock();
        memory.endings += 1;
        memory.live.remove(&session);
    }

    /// Every session of a user may have ended.
    pub(super) fn forget_user(&self, user: UserId) {
        let mut memory = self.0.lock();
        memory.endings += 1;
        memory.live.retain(|_, (other, _)| *other != user);
    }

    pub(super) fn line_is_up(&self) {
        self.0.lock().line = Line::Up;
    }

    pub(super) fn line_is_down(&self) {
        let mut memory = self.0.lock();
        memory.line = Line::Down;
        memory.endings += 1;
        memory.live.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal() -> Principal {
        Principal {
            user: UserId(1),
            session: SessionId::random(),
        }
    }

    #[test]
    fn what_ended_or_is_old_is_not_known() {
        let (cache, one, now) = (Cache::default(), principal(), Instant::now());
        cache.line_is_up();
        let heard = cache.knows(one, now).unwrap_err();
        cache.keep(one, heard, now);
        assert_eq!(cache.knows(one, now), Ok(()));
        assert!(cache.knows(one, now + TRUST).is_err());
        let other_user = Principal {
            user: UserId(2),
            ..one
        };
        assert!(cache.knows(other_user, now).is_err());
        cache.forget(one.session);
        assert!(cache.knows(one, now).is_err());
    }

    #[test]
    fn a_session_that_ends_while_it_is_looked_up_is_not_kept() {
        let (cache, one, now) = (Cache::default(), principal(), Instant::now());
        cache.line_is_up();
        let heard = cache.knows(one, now).unwrap_err();
        cache.forget(one.session);
        cache.keep(one, heard, now);
        assert!(cache.knows(one, now).is_err());
    }

    #[test]
    fn without_the_line_nothing_is_known() {
        let (cache, one, now) = (Cache::default(), principal(), Instant::now());
        let heard = cache.knows(one, now).unwrap_err();
        cache.keep(one, heard, now);
        assert!(cache.knows(one, now).is_err());
        cache.line_is_up();
        cache.keep(one, cache.knows(one, now).unwrap_err(), now);
        cache.line_is_down();
        assert!(cache.knows(one, now).is_err());
    }
}
