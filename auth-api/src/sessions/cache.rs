//! Sessions that were found live a moment ago, so that a warm replica need not ask Redis again.
//!
//! Redis tells of sessions that ended on a line, in the order in which they did. On the same line
//! come back beats that this replica sends to itself: when one is heard, so is every session that
//! ended before it was sent. So what is remembered is believed for [`TRUST`] from the sending of the
//! last beat that was heard, and a line that is dead without a word, or a replica that was stopped
//! for a while, makes nobody believe in a session for longer than that.
//!
//! A session that ends while we are asking about it is never kept: each look at the store is taken
//! with the count of what was heard so far, and kept only if that is still the same.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::domain::session::SessionId;
use crate::domain::token::Principal;
use crate::domain::user::UserId;

/// How long a replica that has not heard of an ending may go on as if there were none. By
/// [`Instant`], which goes on while a process is stopped.
pub(super) const TRUST: Duration = Duration::from_secs(1);
/// Between two beats: one that is late, or lost, is not missed.
pub(super) const BEAT: Duration = Duration::from_millis(250);
/// A beat that Redis took and that has not come back by then shows that the line is dead.
const SILENCE: Duration = Duration::from_secs(2);
/// How long a session is remembered: it may expire, which nobody is told of.
const MEMORY: Duration = Duration::from_secs(3);
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
    /// Somebody has asked since the last beat.
    is_asked: bool,
}

/// Whether we are told of endings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Line {
    Up(Pulse),
    #[default]
    Down,
}

/// Beats, by the time at which they were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Pulse {
    /// The last one that came back.
    heard: Option<Instant>,
    /// The first one after it that Redis took.
    unheard: Option<Instant>,
}

/// What was heard when a look at the store began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heard(u64);

impl Cache {
    /// Whether a session is known to live; if not, what was heard so far.
    pub(super) fn knows(&self, principal: Principal, now: Instant) -> Result<(), Heard> {
        let mut memory = self.0.lock();
        memory.is_asked = true;
        match memory.live.get(&principal.session) {
            Some((user, until))
                if *user == principal.user && *until > now && memory.line.is_believed(now) =>
            {
                Ok(())
            }
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
        let entry = (principal.user, now + MEMORY);
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

    /// Any session may have ended.
    pub(super) fn forget_all(&self) {
        self.0.lock().forget_all();
    }

    /// From now on we are told of endings. What was looked up before may have ended unheard.
    pub(super) fn line_is_up(&self) {
        let mut memory = self.0.lock();
        memory.line = Line::Up(Pulse::default());
        memory.forget_all();
    }

    pub(super) fn line_is_down(&self) {
        let mut memory = self.0.lock();
        memory.line = Line::Down;
        memory.forget_all();
    }

    /// Whether somebody has asked since the last call: for nobody no beat is needed.
    pub(super) fn take_asked(&self) -> bool {
        std::mem::take(&mut self.0.lock().is_asked)
    }

    /// Redis took the beat that was sent then.
    pub(super) fn beat_was_taken(&self, sent: Instant) {
        if let Line::Up(pulse) = &mut self.0.lock().line
            && pulse.heard.is_none_or(|heard| heard < sent)
        {
            pulse.unheard.get_or_insert(sent);
        }
    }

    /// The beat that was sent then has come back.
    pub(super) fn beat_was_heard(&self, sent: Instant) {
        if let Line::Up(pulse) = &mut self.0.lock().line {
            pulse.heard = pulse.heard.max(Some(sent));
            pulse.unheard = None;
        }
    }

    /// Whether beats do not come back although they should.
    pub(super) fn is_line_silent(&self, now: Instant) -> bool {
        match self.0.lock().line {
            Line::Up(pulse) => pulse.unheard.is_some_and(|sent| now > sent + SILENCE),
            Line::Down => false,
        }
    }
}

impl Memory {
    fn forget_all(&mut self) {
        self.endings += 1;
        self.live.clear();
    }
}

impl Line {
    fn is_believed(self, now: Instant) -> bool {
        match self {
            Self::Up(pulse) => pulse.heard.is_some_and(|sent| now < sent + TRUST),
            Self::Down => false,
        }
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

    /// One whose line is up and has just been heard to be.
    fn cache(now: Instant) -> Cache {
        let cache = Cache::default();
        cache.line_is_up();
        cache.beat_was_heard(now);
        cache
    }

    #[test]
    fn what_ended_or_is_old_is_not_known() {
        let (one, now) = (principal(), Instant::now());
        let cache = cache(now);
        let heard = cache.knows(one, now).unwrap_err();
        cache.keep(one, heard, now);
        assert_eq!(cache.knows(one, now), Ok(()));
        let later = now + MEMORY;
        cache.beat_was_heard(later);
        assert!(cache.knows(one, later).is_err());
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
        let (one, now) = (principal(), Instant::now());
        let cache = cache(now);
        let heard = cache.knows(one, now).unwrap_err();
        cache.forget(one.session);
        cache.keep(one, heard, now);
        assert!(cache.knows(one, now).is_err());
    }

    #[test]
    fn a_session_that_was_looked_up_before_the_line_was_up_is_not_kept() {
        let (cache, one, now) = (Cache::default(), principal(), Instant::now());
        let heard = cache.knows(one, now).unwrap_err();
        cache.line_is_up();
        cache.beat_was_heard(now);
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
        cache.beat_was_heard(now);
        cache.keep(one, cache.knows(one, now).unwrap_err(), now);
        assert_eq!(cache.knows(one, now), Ok(()));
        cache.line_is_down();
        assert!(cache.knows(one, now).is_err());
    }

    #[test]
    fn nothing_is_believed_for_longer_than_beats_come_back() {
        let (one, now) = (principal(), Instant::now());
        let cache = cache(now);
        cache.keep(one, cache.knows(one, now).unwrap_err(), now);
        cache.beat_was_taken(now + BEAT);
        assert_eq!(cache.knows(one, now + TRUST / 2), Ok(()));
        assert!(cache.knows(one, now + TRUST).is_err());
        assert!(!cache.is_line_silent(now + SILENCE));
        assert!(cache.is_line_silent(now + BEAT + SILENCE + BEAT));
        cache.beat_was_heard(now + BEAT);
        assert_eq!(cache.knows(one, now + TRUST), Ok(()));
        // It may be heard before it is known that it was taken.
        cache.beat_was_taken(now + BEAT);
        assert!(!cache.is_line_silent(now + 2 * SILENCE));
    }
}
