//! Subscriber that receives the messages of other replicas and sends this replica's heartbeats.

use std::sync::Arc;
use std::time::Instant;

use fred::clients::SubscriberClient;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::MissedTickBehavior;

use super::acknowledgement::InvalidationTracker;
use super::message::{
    self, HEARTBEAT_CHANNEL, INVALIDATION_CHANNEL, Invalidated, Message, ReplicaId,
};
use crate::sessions::cache::SessionCache;
use crate::sessions::lease::HEARTBEAT_INTERVAL;
use crate::store::redis::Redis;

pub(crate) struct Subscriber {
    redis: Redis,
    connection: SubscriberClient,
    is_subscribed: bool,
    cache: Arc<SessionCache>,
    tracker: Arc<InvalidationTracker>,
    /// Instant from which the times in this replica's heartbeats count.
    epoch: Instant,
}

impl Subscriber {
    pub(crate) fn new(
        redis: Redis,
        connection: SubscriberClient,
        cache: Arc<SessionCache>,
        tracker: Arc<InvalidationTracker>,
    ) -> Self {
        Self {
            redis,
            connection,
            is_subscribed: false,
            cache,
            tracker,
            epoch: Instant::now(),
        }
    }

    /// Processes messages for as long as the connection's client exists.
    pub(crate) async fn run(mut self) {
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
                        tracing::warn!(count, "messages of other replicas lost");
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
            self.tracker.replica.channel(),
        ];
        if let Err(error) = self.connection.subscribe(channels).await {
            return tracing::warn!(%error, "subscribing to session invalidations failed");
        }
        self.is_subscribed = true;
        self.cache.subscription_started();
        self.tracker.subscription_started(Instant::now());
        tracing::info!("subscribed to session invalidations");
    }

    fn subscription_lost(&mut self) {
        if std::mem::take(&mut self.is_subscribed) {
            tracing::warn!("subscription to session invalidations lost: sessions are not cached");
        }
        self.cache.subscription_lost();
        self.tracker.subscription_lost();
    }

    /// Handles the loss of messages, which may have been invalidations and heartbeats.
    fn messages_lost(&self) {
        self.cache.invalidate_all();
        self.tracker.subscription_started(Instant::now());
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
        } else if self.cache.take_was_used() {
            let (redis, cache) = (self.redis.clone(), Arc::clone(&self.cache));
            let heartbeat = message::heartbeat(self.tracker.replica, now - self.epoch);
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
                if sender == self.tracker.replica
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
        sender: Option<ReplicaId>,
        number: u64,
        invalidated: Invalidated,
    ) {
        match invalidated {
            Invalidated::Session(session) => self.cache.invalidate_session(session),
            Invalidated::SessionsOf(user) => self.cache.invalidate_user(user),
        }
        match sender {
            Some(replica) if replica == self.tracker.replica => {
                self.tracker
                    .own_invalidation_received(number, Instant::now());
            }
            Some(other) => self.acknowledge(other, number),
            None => {}
        }
    }

    fn acknowledge(&self, sender: ReplicaId, number: u64) {
        let acknowledgement = message::acknowledgement(self.tracker.replica, number);
        let redis = self.redis.clone();
        // In a task of its own, because the subscriber must not wait for Redis.
        tokio::spawn(async move { redis.publish(&sender.channel(), acknowledgement).await });
    }
}

/// Ends the caching of sessions with the subscriber, also if it panics.
impl Drop for Subscriber {
    fn drop(&mut self) {
        self.cache.subscription_lost();
        self.tracker.subscription_lost();
    }
}

#[cfg(test)]
mod tests {
    use fred::types::config::Config;
    use supervision::Supervisor;

    use super::*;
    use crate::domain::principal::{Principal, SessionId};
    use crate::domain::session_cutoff::AuthTime;
    use crate::domain::user::UserId;
    use crate::telemetry::metrics::Metrics;

    const TASK: &str = "tested";

    #[tokio::test]
    async fn a_subscriber_that_panics_is_restarted_and_its_cache_is_not_used_meanwhile() {
        let supervisor = Supervisor::new();
        // Connects to nothing: the test calls what a connection would.
        let redis = Redis::start(Config::default(), Metrics::new().store("redis")).unwrap();
        let cache = Arc::new(SessionCache::default());
        let principal = Principal {
            user: UserId(1),
            session: SessionId::random(),
        };
        let (started, mut starts) = tokio::sync::mpsc::unbounded_channel();
        let start = || {
            let connection = redis.subscriber().unwrap();
            let tracker = Arc::new(InvalidationTracker::new());
            let mut subscriber =
                Subscriber::new(redis.clone(), connection, Arc::clone(&cache), tracker);
            let started = started.clone();
            async move {
                let now = Instant::now();
                let version = subscriber.cache.get(principal, now).unwrap_err();
                subscriber.is_subscribed = true;
                subscriber.cache.subscription_started();
                subscriber.cache.heartbeat_received(now);
                let auth_time = AuthTime(1);
                let current = subscriber.cache.get(principal, now).unwrap_err();
                assert_ne!(version, current);
                subscriber.cache.insert(principal, auth_time, current, now);
                assert_eq!(subscriber.cache.get(principal, now), Ok(auth_time));
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
