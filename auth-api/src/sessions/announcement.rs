//! Endings, told to every replica and heard by each before they are acknowledged: whoever was told
//! that a session is over must find it over everywhere.
//!
//! An announcement names its replica and a number; a replica that has heard it says that number on
//! the other's channel. Waited for are those whose beats (see [`super::cache`]) were heard within
//! [`TRUST`] when our own announcement comes back to us: no other can believe what it remembers.
//! One that does not answer, since it is stopped or cut off, cannot any more when [`TRUST`] has
//! passed, and holds up nobody after that. Other listeners (`PSUBSCRIBE *` of a monitor, a line
//! that Redis does not know to be dead) send no beats and are not waited for.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Notify;
use uuid::Uuid;

use super::cache::TRUST;

/// A process that remembers sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Replica(Uuid);

const CHANNEL: &str = "sessions:heard:";

impl Replica {
    fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Where it is told that others have heard.
    pub(super) fn channel(self) -> String {
        format!("{CHANNEL}{}", self.0.simple())
    }

    pub(super) fn of_channel(channel: &str) -> Option<Self> {
        let id = channel.strip_prefix(CHANNEL)?;
        Uuid::try_parse(id).ok().map(Self)
    }
}

/// This replica's announcements, and the replicas that hear them.
#[derive(Debug)]
pub(super) struct Announcements {
    pub(super) replica: Replica,
    next: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When each other replica was last heard to be alive.
    others: HashMap<Replica, Instant>,
    /// From when on `others` has everybody: after we have listened for as long as one may be silent.
    complete_from: Option<Instant>,
    open: HashMap<u64, Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// Who has yet to say that it has heard, once that is known.
    missing: Option<HashSet<Replica>>,
    heard: Arc<Notify>,
}

/// One that is on its way.
#[derive(Debug)]
pub(super) struct Announcement<'a> {
    all: &'a Announcements,
    number: u64,
    heard: Arc<Notify>,
}

impl Announcements {
    pub(super) fn new() -> Self {
        Self {
            replica: Replica::random(),
            next: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    pub(super) fn begin(&self) -> Announcement<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let open = Open::default();
        let heard = Arc::clone(&open.heard);
        self.state.lock().open.insert(number, open);
        Announcement {
            all: self,
            number,
            heard,
        }
    }

    /// From now on we hear who is alive, all that is said or all but what was lost.
    pub(super) fn listen(&self, now: Instant) {
        self.state.lock().complete_from = Some(now + TRUST);
    }

    /// From now on we do not.
    pub(super) fn stop_listening(&self) {
        self.state.lock().complete_from = None;
    }

    /// A replica is alive.
    pub(super) fn alive(&self, replica: Replica, now: Instant) {
        let mut state = self.state.lock();
        if replica != self.replica {
            state.others.insert(replica, now);
        }
        state.others.retain(|_, heard| now < *heard + TRUST);
    }

    /// An announcement of ours has come back: whoever is alive hears it, or has heard it.
    pub(super) fn came_back(&self, number: u64, now: Instant) {
        let state = &mut *self.state.lock();
        let is_complete = state.complete_from.is_some_and(|from| from <= now);
        if let Some(open) = state.open.get_mut(&number).filter(|_| is_complete) {
            let others = state.others.iter();
            let alive = others.filter(|(_, heard)| now < **heard + TRUST);
            open.missing = Some(alive.map(|(replica, _)| *replica).collect());
            open.tell_if_heard();
        }
    }

    /// A replica has heard an announcement of ours.
    pub(super) fn heard(&self, number: u64, by: Replica) {
        let mut state = self.state.lock();
        if let Some(open) = state.open.get_mut(&number)
            && let Some(missing) = &mut open.missing
        {
            missing.remove(&by);
            open.tell_if_heard();
        }
    }
}

impl Open {
    fn tell_if_heard(&self) {
        if self.missing.as_ref().is_some_and(HashSet::is_empty) {
            self.heard.notify_one();
        }
    }
}

impl Announcement<'_> {
    /// What is told before what has ended.
    pub(super) fn head(&self) -> String {
        format!("{} {}", self.all.replica.channel(), self.number)
    }

    /// Waits until all have heard, or believe nothing any more that they have not heard of.
    pub(super) async fn heard_by_all(self) {
        if tokio::time::timeout(TRUST, self.heard.notified())
            .await
            .is_err()
        {
            tracing::debug!("a replica did not say that it has heard of an ending");
        }
    }
}

impl Drop for Announcement<'_> {
    fn drop(&mut self) {
        self.all.state.lock().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    /// One that has listened from a moment on for long enough to know everybody.
    fn listening() -> (Announcements, Instant, Instant) {
        let (all, start) = (Announcements::new(), Instant::now());
        all.listen(start);
        (all, start, start + TRUST)
    }

    /// Whether an announcement need not wait any more.
    fn is_heard(announcement: &Announcement<'_>) -> bool {
        let waiting = pin!(announcement.heard.notified());
        let mut context = Context::from_waker(Waker::noop());
        waiting.poll(&mut context).is_ready()
    }

    #[test]
    fn it_is_over_once_all_who_are_alive_have_heard() {
        let (all, start, now) = listening();
        let (one, two, gone) = (Replica::random(), Replica::random(), Replica::random());
        all.alive(gone, start);
        for replica in [one, two, all.replica] {
            all.alive(replica, now);
        }
        for (heard, is_over) in [
            (vec![one], false),
            (vec![one, one], false),
            (vec![two, one], true),
        ] {
            let announcement = all.begin();
            all.came_back(announcement.number, now);
            for replica in heard {
                all.heard(announcement.number, replica);
            }
            assert_eq!(is_heard(&announcement), is_over);
        }
        assert!(all.state.lock().open.is_empty());
    }

    #[test]
    fn alone_it_is_over_when_it_comes_back() {
        let (all, _, now) = listening();
        let announcement = all.begin();
        assert!(!is_heard(&announcement));
        all.came_back(announcement.number, now);
        assert!(is_heard(&announcement));
    }

    #[test]
    fn who_has_not_listened_for_long_cannot_know_who_is_alive() {
        let (all, start, now) = listening();
        let announcement = all.begin();
        all.came_back(announcement.number, start);
        assert!(!is_heard(&announcement));
        all.stop_listening();
        all.came_back(announcement.number, now);
        assert!(!is_heard(&announcement));
    }
}
