//! Subscriber that receives the messages of other participants and sends this participant's heartbeats.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use fred::clients::SubscriberClient;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use redis_connection::RedisConnection;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::MissedTickBehavior;

use crate::acknowledgement::InvalidationTracker;
use crate::cache::{Invalidate, LeasedCache};
use crate::lease::HEARTBEAT_INTERVAL;
use crate::message::{
    self, HEARTBEAT_CHANNEL, INVALIDATION_CHANNEL, Invalidated, Message, ParticipantId,
};

/// Task of a participant that keeps its cache valid.
pub struct Subscriber {
    redis: RedisConnection,
    connection: SubscriberClient,
    is_subscribed: bool,
    cache: Arc<dyn Invalidate>,
    tracker: Arc<InvalidationTracker>,
    /// Instant from which the times in this participant's heartbeats count.
    epoch: Instant,
}

impl Subscriber {
    /// Creates a subscriber with a connection of its own to the server of `redis`, on which it publishes.
    ///
    /// # Errors
    /// Returns an error if the settings of the connection are invalid.
    pub fn new<K, V>(
        redis: RedisConnection,
        cache: Arc<LeasedCache<K, V>>,
        tracker: Arc<InvalidationTracker>,
    ) -> Result<Self, fred::error::Error>
    where
        K: Hash + Eq + Clone + Send + 'static,
        V: Clone + Send + 'static,
    {
        Ok(Self {
            connection: redis.subscriber()?,
            redis,
            is_subscribed: false,
            cache,
            tracker,
            epoch: Instant::now(),
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
                        self.messages_lost();
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
        let channels = vec![
            INVALIDATION_CHANNEL.to_owned(),
            HEARTBEAT_CHANNEL.to_owned(),
            self.tracker.participant.channel(),
        ];
        if let Err(error) = self.connection.subscribe(channels).await {
            return tracing::warn!(%error, "subscribing to session invalidations failed");
        }
        self.is_subscribed = true;
        let now = Instant::now();
        self.cache.subscription_started(now);
        self.tracker.subscription_started(now);
        tracing::info!("subscribed to session invalidations");
    }

    fn subscription_lost(&mut self) {
        if std::mem::take(&mut self.is_subscribed) {
            tracing::warn!("subscription to session invalidations lost: sessions are not cached");
        }
        self.cache.subscription_lost(Instant::now());
        self.tracker.subscription_lost();
    }

    /// Handles the loss of messages, which may have been invalidations and heartbeats.
    fn messages_lost(&self) {
        let now = Instant::now();
        self.cache.invalidate_all(now);
        self.tracker.subscription_started(now);
    }

    /// Subscribes if necessary, replaces a dead connection, and sends a heartbeat if the cache is in use.
    async fn maintain(&mut self) {
        if !self.is_subscribed {
            if self.connection.is_connected() {
                self.subscribe().await;
            }
            return;
        }
        let now = Instant::now();
        if self.cache.is_heartbeat_overdue(now) {
            self.subscription_lost();
            let connection = self.connection.clone();
            // Its end is received as an event.
            tokio::spawn(async move { connection.force_reconnection().await });
        } else if self.cache.take_needs_heartbeat(now) {
            let (redis, cache) = (self.redis.clone(), Arc::clone(&self.cache));
            let heartbeat = message::heartbeat(self.tracker.participant, now - self.epoch);
            tokio::spawn(async move {
                if redis.publish(HEARTBEAT_CHANNEL, heartbeat).await.is_ok() {
                    cache.heartbeat_published(now);
                }
            });
        }
    }

    fn handle(&self, message: &fred::types::Message) {
        let text = message.value.as_str().unwrap_or_default();
        match Message::parse(&message.channel, &text) {
            Some(Message::Invalidation {
                sender,
                number,
                invalidated,
            }) => self.handle_invalidation(sender, number, invalidated),
            Some(Message::Heartbeat { sender, sent }) => {
                let now = Instant::now();
                self.tracker.heartbeat_received(sender, now);
                if sender == self.tracker.participant
                    && let Some(sent) = self.epoch.checked_add(sent).filter(|sent| *sent <= now)
                {
                    self.cache.heartbeat_received(sent);
                }
            }
            Some(Message::Acknowledgement { sender, number }) => {
                self.tracker.acknowledgement_received(number, sender);
            }
            None => {
                // It may have been meant as an invalidation.
                tracing::warn!(channel = %message.channel, "unknown message on a session channel");
                self.messages_lost();
            }
        }
    }

    fn handle_invalidation(
        &self,
        sender: Option<ParticipantId>,
        number: u64,
        invalidated: Invalidated,
    ) {
        self.cache.invalidate(invalidated, Instant::now());
        match sender {
            Some(participant) if participant == self.tracker.participant => {
                self.tracker
                    .own_invalidation_received(number, Instant::now());
            }
            Some(other) => self.acknowledge(other, number),
            None => {}
        }
    }

    fn acknowledge(&self, sender: ParticipantId, number: u64) {
        let acknowledgement = message::acknowledgement(self.tracker.participant, number);
        let redis = self.redis.clone();
        // In a task of its own, because the subscriber must not wait for Redis.
        tokio::spawn(async move { redis.publish(&sender.channel(), acknowledgement).await });
    }
}

/// Ends the caching of sessions with the subscriber, also if it panics.
impl Drop for Subscriber {
    fn drop(&mut self) {
        self.cache.subscription_lost(Instant::now());
        self.tracker.subscription_lost();
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
            .field("is_subscribed", &self.is_subscribed)
            .field("tracker", &self.tracker)
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
            let tracker = Arc::new(InvalidationTracker::new());
            let mut subscriber =
                Subscriber::new(redis.clone(), Arc::clone(&cache), tracker).unwrap();
            let (started, cache) = (started.clone(), Arc::clone(&cache));
            async move {
                let now = Instant::now();
                let version = cache.get(&session, now).unwrap_err();
                subscriber.is_subscribed = true;
                subscriber.cache.subscription_started(now);
                subscriber.cache.heartbeat_received(now);
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
