//! Subscriber that connects a [`Participant`] to Redis: it receives the messages of other participants and sends this
//! participant's heartbeats and acknowledgements.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use fred::clients::SubscriberClient;
use fred::error::Error as RedisError;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use parking_lot::Mutex;
use redis_connection::{
    REPLACEMENT_INTERVAL, RedisConnection, confirm_primary, has_too_few_replicas, is_read_only,
};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::MissedTickBehavior;

use crate::acknowledgement::InvalidationTracker;
use crate::cache::{Invalidate, LeasedCache};
use crate::lease::HEARTBEAT_INTERVAL;
use crate::message::PRIMARY_KEY;
use crate::participant::{Participant, Publication, Request};

/// Task of a participant that keeps its cache valid.
pub struct Subscriber {
    connection: SubscriberClient,
    participant: Participant,
    heartbeats: Heartbeats,
}

/// Sender of heartbeats. Cheap to clone.
///
/// It uses the subscriber's connection. A message that is sent on another one may return from a replica of the server that accepted it, and a
/// replica that was cut off for a while has not delivered every invalidation before.
#[derive(Clone)]
struct Heartbeats {
    connection: SubscriberClient,
    cache: Arc<dyn Invalidate>,
    /// Last rejection that was acted upon, if the last write failed.
    rejection: Arc<Mutex<Option<Rejection>>>,
}

/// Write before a heartbeat that failed.
#[derive(Debug, Clone, Copy)]
struct Rejection {
    at: Instant,
    cause: RejectionCause,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RejectionCause {
    /// The server is not the primary, or may not be.
    NoPrimary,
    /// Anything else, such as a connection that is lost.
    Other,
}

impl RejectionCause {
    fn of(error: &RedisError) -> Self {
        if is_read_only(error) || has_too_few_replicas(error) {
            Self::NoPrimary
        } else {
            Self::Other
        }
    }
}

impl Subscriber {
    /// Creates a subscriber with a connection of its own to the server of `redis`.
    ///
    /// # Errors
    /// Returns an error if the settings of the connection are invalid.
    pub fn new<K, V>(
        redis: &RedisConnection,
        cache: Arc<LeasedCache<K, V>>,
        tracker: Arc<InvalidationTracker>,
    ) -> Result<Self, fred::error::Error>
    where
        K: Hash + Eq + Clone + Send + 'static,
        V: Clone + Send + 'static,
    {
        let cache: Arc<dyn Invalidate> = cache;
        let connection = redis.subscriber()?;
        Ok(Self {
            participant: Participant::new(Arc::clone(&cache), tracker),
            heartbeats: Heartbeats {
                connection: connection.clone(),
                cache,
                rejection: Arc::default(),
            },
            connection,
        })
    }

    /// Processes messages for as long as the connection's client exists.
    pub async fn run(mut self) {
        let (mut messages, mut reconnected, mut failed) = (
            self.connection.message_rx(),
            self.connection.reconnect_rx(),
            self.connection.error_rx(),
        );
        let mut heartbeats = tokio::time::interval(HEARTBEAT_INTERVAL);
        heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.connection.connect();
        loop {
            tokio::select! {
                biased;
                message = messages.recv() => match message {
                    Ok(message) => self.handle(&message),
                    Err(RecvError::Lagged(count)) => {
                        tracing::warn!(count, "messages of other participants lost");
                        self.participant.messages_lost(Instant::now());
                    }
                    Err(RecvError::Closed) => break,
                },
                _ = failed.recv() => self.subscription_lost(),
                _ = reconnected.recv() => {
                    self.subscription_lost();
                    self.subscribe().await;
                }
                _ = heartbeats.tick() => self.maintain().await,
            }
        }
    }

    async fn subscribe(&mut self) {
        let channels = self.participant.channels().to_vec();
        match self.connection.subscribe(channels).await {
            Ok(()) => {
                self.participant.subscribed(Instant::now());
                if !self.heartbeats.are_rejected() {
                    tracing::info!("subscribed to session invalidations");
                }
            }
            Err(error) => tracing::warn!(%error, "subscribing to session invalidations failed"),
        }
    }

    fn subscription_lost(&mut self) {
        if self.participant.is_subscribed() {
            self.log_loss();
        }
        self.participant.subscription_lost(Instant::now());
    }

    fn log_loss(&self) {
        // While a server rejects heartbeats its connection is replaced at intervals, which is no news.
        if !self.heartbeats.are_rejected() {
            tracing::warn!("subscription to session invalidations lost: sessions are not cached");
        }
    }

    /// Does what the participant needs at an interval.
    async fn maintain(&mut self) {
        match self.participant.tick(Instant::now()) {
            Some(Request::Subscribe) if self.connection.is_connected() => self.subscribe().await,
            Some(Request::Reconnect) => {
                self.log_loss();
                let connection = self.connection.clone();
                // Its end is received as an event.
                tokio::spawn(async move { connection.force_reconnection().await });
            }
            Some(Request::Heartbeat { sent, publication }) => {
                tokio::spawn(self.heartbeats.clone().send(sent, publication));
            }
            Some(Request::Subscribe) | None => {}
        }
    }

    fn handle(&mut self, message: &fred::types::Message) {
        let text = message.value.as_str().unwrap_or_default();
        let acknowledgement = self
            .participant
            .receive(&message.channel, &text, Instant::now);
        if let Some(Publication { channel, message }) = acknowledgement {
            let connection = self.connection.clone();
            // In a task of its own, because the subscriber must not wait for Redis.
            tokio::spawn(async move {
                if let Err(error) = connection.publish::<(), _, _>(channel, message).await {
                    tracing::debug!(%error, "publishing an acknowledgement failed");
                }
            });
        }
    }
}

impl Heartbeats {
    /// Sends a write that changes nothing, and the heartbeat.
    async fn send(self, sent: Instant, heartbeat: Publication) {
        let (confirmed, _) = tokio::join!(
            confirm_primary(&self.connection, PRIMARY_KEY),
            self.connection
                .publish::<(), _, _>(heartbeat.channel, heartbeat.message),
        );
        match confirmed {
            Ok(()) => {
                self.cache.primary_confirmed(sent);
                if self.rejection.lock().take().is_some() {
                    tracing::info!("heartbeats accepted again: sessions are cached");
                }
            }
            Err(error) => self.on_rejection(&error).await,
        }
    }

    /// Returns whether the connection is being replaced at intervals because its server is not the primary.
    fn are_rejected(&self) -> bool {
        self.rejection.lock().is_some_and(|rejection| {
            rejection.cause == RejectionCause::NoPrimary
                && rejection.at.elapsed() < 2 * REPLACEMENT_INTERVAL
        })
    }

    /// Replaces the connection, at intervals, if its server is not the primary: its address may lead to that by now.
    async fn on_rejection(&self, error: &RedisError) {
        if self.record_rejection(error) == Some(RejectionCause::NoPrimary) {
            let _ = self.connection.force_reconnection().await;
        }
    }

    /// Returns the cause of a rejection that is to be acted upon: the first one, and one in each interval.
    fn record_rejection(&self, error: &RedisError) -> Option<RejectionCause> {
        let mut rejection = self.rejection.lock();
        match *rejection {
            None => tracing::warn!(%error, "heartbeats not accepted: sessions are not cached"),
            Some(last) if last.at.elapsed() < REPLACEMENT_INTERVAL => return None,
            Some(_) => {}
        }
        let cause = RejectionCause::of(error);
        *rejection = Some(Rejection {
            at: Instant::now(),
            cause,
        });
        Some(cause)
    }
}

/// Ends the caching of sessions with the subscriber, also if it panics.
impl Drop for Subscriber {
    fn drop(&mut self) {
        self.participant.subscription_lost(Instant::now());
        let connection = self.connection.clone();
        // The library keeps a connection that is not closed.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { connection.quit().await });
        }
    }
}

impl fmt::Debug for Subscriber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Subscriber")
            .field("participant", &self.participant)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fred::types::config::Config;
    use supervision::Supervisor;

    use super::*;
    use crate::cache::LookupSource;
    use crate::generation::{CacheEntry, Owner};
    use crate::ids::{SessionId, UserId};

    const TASK: &str = "tested";

    #[tokio::test]
    async fn the_loss_of_a_subscription_is_no_news_only_while_the_server_is_not_the_primary() {
        let redis = RedisConnection::start(Config::default()).unwrap();
        let cache = Arc::new(LeasedCache::<SessionId, ()>::new(LookupSource::Store, 10));
        let tracker = Arc::new(InvalidationTracker::new(Instant::now()));
        for (error, is_expected) in [
            ("connection reset", false),
            ("NOPERM no permissions", false),
            ("READONLY replica", true),
            ("NOREPLICAS too few", true),
        ] {
            let (cache, tracker) = (Arc::clone(&cache), Arc::clone(&tracker));
            let subscriber = Subscriber::new(&redis, cache, tracker).unwrap();
            let error = RedisError::new(fred::error::ErrorKind::Unknown, error);
            assert!(subscriber.heartbeats.record_rejection(&error).is_some());
            assert_eq!(subscriber.heartbeats.are_rejected(), is_expected, "{error}");
            assert_eq!(subscriber.heartbeats.record_rejection(&error), None);
        }
    }

    #[tokio::test]
    async fn a_subscriber_that_panics_is_restarted_and_its_cache_is_not_used_meanwhile() {
        let supervisor = Supervisor::new();
        // Connects to nothing: the test calls what a connection would.
        let redis = RedisConnection::start(Config::default()).unwrap();
        let cache = Arc::new(LeasedCache::new(LookupSource::Store, 10));
        let session = SessionId::random();
        let owner = Owner {
            user: UserId(1),
            session,
        };
        let (started, mut starts) = tokio::sync::mpsc::unbounded_channel();
        let start = || {
            let tracker = Arc::new(InvalidationTracker::new(Instant::now()));
            let mut subscriber = Subscriber::new(&redis, Arc::clone(&cache), tracker).unwrap();
            let (started, cache) = (started.clone(), Arc::clone(&cache));
            async move {
                let now = Instant::now();
                let version = cache.get(&session, now).unwrap_err();
                subscriber.participant.subscribed(now);
                subscriber.heartbeats.cache.primary_confirmed(now);
                subscriber.heartbeats.cache.heartbeat_received(now, now);
                let current = cache.get(&session, now).unwrap_err();
                assert_ne!(version, current);
                let entry = CacheEntry {
                    owner,
                    value: 1,
                    expires_at: now + Duration::from_mins(1),
                };
                cache.insert(session, entry, current);
                assert_eq!(cache.get(&session, now), Ok(1));
                let _ = started.send(());
                panic!("in the subscriber of start {}", now.elapsed().as_secs());
            }
        };
        tokio::select! {
            () = supervisor.keep_running(TASK, start) => unreachable!("it is kept running"),
            () = async {
                // Each start finds that the one before has left nothing in the cache.
                for _ in 0..3 {
                    starts.recv().await;
                }
            } => {}
        }
        assert!(supervisor.restarts(TASK) >= 2);
    }
}
