//! Acknowledgement of this participant's invalidations by the others.
//!
//! A participant acknowledges an invalidation on the sender's channel, with its number. The sender
//! waits for the participants whose heartbeats it received within [`LEASE_DURATION`] before its own
//! invalidation returned: no other has a valid lease. One that does not acknowledge,
//! because it is stopped or cut off, delays the response by [`LEASE_DURATION`] at most. Other
//! subscribers of the channel (`PSUBSCRIBE *` of a monitoring tool, a dead connection that Redis has
//! not noticed) send no heartbeats and are not waited for.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use fred::error::Error as RedisError;
use parking_lot::Mutex;
use redis_connection::RedisConnection;
use tokio::sync::Notify;

use crate::ids::SessionId;
use crate::lease::LEASE_DURATION;
use crate::message::{self, ParticipantId};
use crate::primary::publish_at_primary;

/// Pending invalidations of this participant, and the other participants that are alive.
#[derive(Debug)]
pub struct InvalidationTracker {
    pub(crate) participant: ParticipantId,
    /// Instant from which the times in this participant's heartbeats count. It is that of the participant and not
    /// of a subscriber, since one that is restarted receives heartbeats of the one before.
    pub(crate) epoch: Instant,
    next_number: AtomicU64,
    state: Mutex<TrackerState>,
}

#[derive(Debug, Default)]
struct TrackerState {
    /// Time of the last heartbeat of each other participant.
    last_heartbeats: HashMap<ParticipantId, Instant>,
    /// Time from which `last_heartbeats` is complete: one lease after the subscription began.
    complete_from: Option<Instant>,
    pending: HashMap<u64, PendingState>,
}

#[derive(Debug, Default)]
struct PendingState {
    /// Participants that have not acknowledged yet; `None` until the invalidation has returned.
    unacknowledged: Option<HashSet<ParticipantId>>,
    completed: Arc<Notify>,
}

/// Invalidation that may not be acknowledged by all participants yet.
#[derive(Debug)]
pub struct PendingInvalidation<'t> {
    tracker: &'t InvalidationTracker,
    number: u64,
    completed: Arc<Notify>,
}

impl InvalidationTracker {
    /// Creates the tracker of a new participant.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            participant: ParticipantId::random(),
            epoch: now,
            next_number: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    /// Registers an invalidation. It has to be called before the invalidation is published.
    pub fn begin(&self) -> PendingInvalidation<'_> {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let pending = PendingState::default();
        let completed = Arc::clone(&pending.completed);
        self.state.lock().pending.insert(number, pending);
        PendingInvalidation {
            tracker: self,
            number,
            completed,
        }
    }

    /// Records that the subscription began, or continues after messages were lost.
    pub(crate) fn subscription_started(&self, now: Instant) {
        self.state.lock().complete_from = Some(now + LEASE_DURATION);
    }

    pub(crate) fn subscription_lost(&self) {
        self.state.lock().complete_from = None;
    }

    pub(crate) fn heartbeat_received(&self, sender: ParticipantId, now: Instant) {
        let mut state = self.state.lock();
        if sender != self.participant {
            state.last_heartbeats.insert(sender, now);
        }
        state
            .last_heartbeats
            .retain(|_, received| now < *received + LEASE_DURATION);
    }

    /// Records that an invalidation of this participant has returned, which means that every other one
    /// that is alive receives it or has received it.
    pub(crate) fn own_invalidation_received(&self, number: u64, now: Instant) {
        let state = &mut *self.state.lock();
        let is_complete = state.complete_from.is_some_and(|from| from <= now);
        if let Some(pending) = state.pending.get_mut(&number).filter(|_| is_complete) {
            let alive = state
                .last_heartbeats
                .iter()
                .filter(|(_, received)| now < **received + LEASE_DURATION);
            pending.unacknowledged = Some(alive.map(|(participant, _)| *participant).collect());
            pending.notify_if_completed();
        }
    }

    pub(crate) fn acknowledgement_received(&self, number: u64, sender: ParticipantId) {
        let mut state = self.state.lock();
        if let Some(pending) = state.pending.get_mut(&number)
            && let Some(unacknowledged) = &mut pending.unacknowledged
        {
            unacknowledged.remove(&sender);
            pending.notify_if_completed();
        }
    }
}

impl PendingState {
    fn notify_if_completed(&self) {
        if self.unacknowledged.as_ref().is_some_and(HashSet::is_empty) {
            self.completed.notify_one();
        }
    }
}

impl PendingInvalidation<'_> {
    /// Returns the part of the message that precedes the invalidated sessions.
    #[must_use]
    pub fn header(&self) -> String {
        message::invalidation_header(self.tracker.participant, self.number)
    }

    /// Publishes this invalidation as one of all sessions, after the store has ended them in another way than
    /// by a script.
    ///
    /// # Errors
    /// Returns an error if Redis does not accept the message, or is not the primary.
    pub async fn publish_for_all_sessions(
        &self,
        redis: &RedisConnection,
    ) -> Result<(), RedisError> {
        let message = message::invalidation_of_all(self.tracker.participant, self.number);
        publish_at_primary(redis, message::INVALIDATION_CHANNEL, message).await
    }

    /// Publishes this invalidation as one of a session that the store still has.
    ///
    /// # Errors
    /// Returns an error if Redis does not accept the message, or is not the primary.
    pub async fn publish_for_session(
        &self,
        redis: &RedisConnection,
        session: SessionId,
    ) -> Result<(), RedisError> {
        let message = message::invalidation_of(self.tracker.participant, self.number, session);
        publish_at_primary(redis, message::INVALIDATION_CHANNEL, message).await
    }

    /// Waits until every participant has acknowledged the invalidation or its lease has expired.
    pub async fn acknowledged_by_all(self) {
        self.acknowledged_before(tokio::time::sleep(LEASE_DURATION))
            .await;
    }

    /// Waits until every participant has acknowledged the invalidation, or until `expiry` ends, which lasts for
    /// [`LEASE_DURATION`].
    pub(crate) async fn acknowledged_before(self, expiry: impl Future<Output = ()>) {
        tokio::select! {
            biased;
            () = self.completed.notified() => {}
            () = expiry => {
                tracing::debug!("session invalidation not acknowledged by every participant");
            }
        }
    }
}

impl Drop for PendingInvalidation<'_> {
    fn drop(&mut self) {
        self.tracker.state.lock().pending.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    /// Returns a tracker with the times at which its subscription began and became complete.
    fn subscribed_tracker() -> (InvalidationTracker, Instant, Instant) {
        let start = Instant::now();
        let tracker = InvalidationTracker::new(start);
        tracker.subscription_started(start);
        (tracker, start, start + LEASE_DURATION)
    }

    fn is_completed(pending: &PendingInvalidation<'_>) -> bool {
        let notified = pin!(pending.completed.notified());
        let mut context = Context::from_waker(Waker::noop());
        notified.poll(&mut context).is_ready()
    }

    #[test]
    fn an_invalidation_completes_once_every_live_participant_has_acknowledged() {
        let (tracker, start, now) = subscribed_tracker();
        let (one, two, expired) = (
            ParticipantId::random(),
            ParticipantId::random(),
            ParticipantId::random(),
        );
        tracker.heartbeat_received(expired, start);
        for participant in [one, two, tracker.participant] {
            tracker.heartbeat_received(participant, now);
        }
        for (acknowledged, expected) in [
            (vec![one], false),
            (vec![one, one], false),
            (vec![two, one], true),
        ] {
            let pending = tracker.begin();
            tracker.own_invalidation_received(pending.number, now);
            for participant in acknowledged {
                tracker.acknowledgement_received(pending.number, participant);
            }
            assert_eq!(is_completed(&pending), expected);
        }
        assert!(tracker.state.lock().pending.is_empty());
    }

    #[test]
    fn an_invalidation_of_a_lone_participant_completes_when_it_returns() {
        let (tracker, _, now) = subscribed_tracker();
        let pending = tracker.begin();
        assert!(!is_completed(&pending));
        tracker.own_invalidation_received(pending.number, now);
        assert!(is_completed(&pending));
    }

    #[test]
    fn an_invalidation_does_not_complete_before_all_live_participants_can_be_known() {
        let (tracker, start, now) = subscribed_tracker();
        let pending = tracker.begin();
        tracker.own_invalidation_received(pending.number, start);
        assert!(!is_completed(&pending));
        tracker.subscription_lost();
        tracker.own_invalidation_received(pending.number, now);
        assert!(!is_completed(&pending));
    }
}
