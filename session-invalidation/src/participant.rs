//! Participant of the protocol without its connections, so that it runs in a simulation too: it is told the
//! time and what happens on the subscriber's connection, and returns what is to be done there.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::acknowledgement::InvalidationTracker;
use crate::cache::Invalidate;
use crate::message::{self, HEARTBEAT_CHANNEL, INVALIDATION_CHANNEL, Message};

/// State of the protocol in one participant.
pub(crate) struct Participant {
    is_subscribed: bool,
    cache: Arc<dyn Invalidate>,
    tracker: Arc<InvalidationTracker>,
}

/// Message to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Publication {
    pub(crate) channel: String,
    pub(crate) message: String,
}

/// Action on the connections that a participant needs at a tick of the heartbeat interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// A subscription to [`Participant::channels`], if the subscriber's connection is open.
    Subscribe,
    /// Another connection of the subscriber: this one delivers nothing.
    Reconnect,
    /// A heartbeat, to be sent after a write on the connection that delivers messages. Once Redis has accepted the write,
    /// [`Invalidate::primary_confirmed`] is to be called with `sent`.
    Heartbeat {
        sent: Instant,
        publication: Publication,
    },
}

impl Participant {
    pub(crate) fn new(cache: Arc<dyn Invalidate>, tracker: Arc<InvalidationTracker>) -> Self {
        Self {
            is_subscribed: false,
            cache,
            tracker,
        }
    }

    /// Returns the channels to which the participant subscribes.
    pub(crate) fn channels(&self) -> [String; 3] {
        [
            INVALIDATION_CHANNEL.to_owned(),
            HEARTBEAT_CHANNEL.to_owned(),
            self.tracker.participant.channel(),
        ]
    }

    /// Records that Redis has confirmed the subscription.
    pub(crate) fn subscribed(&mut self, now: Instant) {
        self.is_subscribed = true;
        self.cache.subscription_started(now);
        self.tracker.subscription_started(now);
    }

    pub(crate) fn is_subscribed(&self) -> bool {
        self.is_subscribed
    }

    /// Records that the subscriber's connection was lost, or that it is a new one, or ends: ends the caching.
    pub(crate) fn subscription_lost(&mut self, now: Instant) {
        self.is_subscribed = false;
        self.cache.subscription_lost(now);
        self.tracker.subscription_lost();
    }

    /// Records the loss of messages, which may have been invalidations and heartbeats.
    pub(crate) fn messages_lost(&self, now: Instant) {
        self.cache.invalidate_all(now);
        self.tracker.subscription_started(now);
    }

    /// Returns what is needed, at each [`HEARTBEAT_INTERVAL`](crate::lease::HEARTBEAT_INTERVAL): a subscription, another
    /// connection in place of a dead one, or a heartbeat if the cache is in use.
    pub(crate) fn tick(&mut self, now: Instant) -> Option<Request> {
        if !self.is_subscribed {
            return Some(Request::Subscribe);
        }
        if self.cache.is_heartbeat_overdue(now) {
            self.subscription_lost(now);
            return Some(Request::Reconnect);
        }
        if !self.cache.take_needs_heartbeat(now) {
            return None;
        }
        self.cache.heartbeat_sent(now);
        Some(Request::Heartbeat {
            sent: now,
            publication: Publication {
                channel: HEARTBEAT_CHANNEL.to_owned(),
                message: message::heartbeat(self.tracker.participant, now - self.tracker.epoch),
            },
        })
    }

    /// Processes a message that was received on `channel`. Returns the acknowledgement to be published, if it is one of
    /// another participant that waits for it.
    pub(crate) fn receive(
        &mut self,
        channel: &str,
        text: &str,
        clock: impl Fn() -> Instant,
    ) -> Option<Publication> {
        match Message::parse(channel, text) {
            Some(Message::Invalidation {
                sender,
                number,
                invalidated,
            }) => {
                self.cache.invalidate(invalidated, clock());
                match sender {
                    Some(sender) if sender == self.tracker.participant => {
                        self.tracker.own_invalidation_received(number, clock());
                    }
                    Some(sender) => {
                        return Some(Publication {
                            channel: sender.channel(),
                            message: message::acknowledgement(self.tracker.participant, number),
                        });
                    }
                    None => {}
                }
            }
            Some(Message::Heartbeat { sender, sent }) => {
                let now = clock();
                self.tracker.heartbeat_received(sender, now);
                if sender == self.tracker.participant
                    && let Some(sent) = self.tracker.epoch.checked_add(sent)
                    && sent <= now
                {
                    self.cache.heartbeat_received(sent, now);
                }
            }
            Some(Message::Acknowledgement { sender, number }) => {
                self.tracker.acknowledgement_received(number, sender);
            }
            None => {
                // It may have been meant as an invalidation.
                tracing::warn!(channel, "unknown message on a session channel");
                self.messages_lost(clock());
            }
        }
        None
    }
}

impl fmt::Debug for Participant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Participant")
            .field("is_subscribed", &self.is_subscribed)
            .field("tracker", &self.tracker)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cache::{LeasedCache, LookupSource};
    use crate::generation::{CacheEntry, Owner};
    use crate::ids::{SessionId, UserId};

    #[test]
    fn a_heartbeat_of_the_subscriber_before_renews_the_lease_from_its_sending_alone() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let cache = Arc::new(LeasedCache::new(LookupSource::Store, 10));
        let tracker = Arc::new(InvalidationTracker::new(start));
        let session = SessionId::random();
        let participant = || {
            let cache: Arc<dyn Invalidate> = Arc::<LeasedCache<_, _>>::clone(&cache);
            let mut participant = Participant::new(cache, Arc::clone(&tracker));
            participant.subscribed(at(200));
            participant
        };
        let heartbeat = |participant: &mut Participant, sent| {
            let _ = cache.get(&session, sent);
            match participant.tick(sent) {
                Some(Request::Heartbeat { publication, .. }) => publication,
                other => panic!("a heartbeat is needed, not {other:?}"),
            }
        };
        let publication = heartbeat(&mut participant(), at(250));

        let mut restarted = participant();
        let first = heartbeat(&mut restarted, at(210));
        restarted.receive(&first.channel, &first.message, || at(220));
        cache.primary_confirmed(at(250));
        let version = cache.get(&session, at(300)).unwrap_err();
        let owner = Owner {
            user: UserId(1),
            session,
        };
        let entry = CacheEntry {
            owner,
            value: (),
            expires_at: at(10_000),
        };
        cache.insert(session, entry, version);
        restarted.receive(&publication.channel, &publication.message, || at(900));
        assert!(cache.get(&session, at(1_239)).is_ok());
        assert!(cache.get(&session, at(1_240)).is_err());
    }
}
