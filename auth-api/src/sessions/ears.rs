//! Who listens to Redis for this replica: to endings, and to who is alive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::clients::SubscriberClient;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::Message;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::MissedTickBehavior;

use super::announcement::{Announcements, Replica};
use super::cache::{BEAT, Cache};
use crate::domain::session::SessionId;
use crate::domain::user::UserId;
use crate::redis::Redis;

/// Where endings are told: a replica's channel and the number of its announcement, to be confirmed
/// there, and what has ended.
pub(super) const ENDINGS: &str = "sessions:ended";
/// The head of an announcement that nobody has to confirm.
pub(super) const NO_ANNOUNCEMENT: &str = "nobody 0";
/// Where replicas say that they are alive: their channel and a time of their own.
const BEATS: &str = "sessions:alive";

pub(super) struct Ears {
    redis: Redis,
    line: SubscriberClient,
    is_up: bool,
    cache: Arc<Cache>,
    announcements: Arc<Announcements>,
    /// What times in our beats count from.
    origin: Instant,
}

impl Ears {
    pub(super) fn new(
        redis: Redis,
        line: SubscriberClient,
        cache: Arc<Cache>,
        announcements: Arc<Announcements>,
    ) -> Self {
        Self {
            redis,
            line,
            is_up: false,
            cache,
            announcements,
            origin: Instant::now(),
        }
    }

    /// Listens for as long as the program runs.
    pub(super) async fn listen(mut self) {
        let (mut messages, mut connected, mut broken) = (
            self.line.message_rx(),
            self.line.reconnect_rx(),
            self.line.error_rx(),
        );
        let mut beats = tokio::time::interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.line.connect();
        loop {
            tokio::select! {
                biased;
                message = messages.recv() => match message {
                    Ok(message) => self.hear(&message),
                    Err(RecvError::Lagged(count)) => {
                        tracing::warn!(count, "messages of other replicas were lost");
                        self.missed_something();
                    }
                    Err(RecvError::Closed) => break,
                },
                _ = broken.recv() => self.line_is_down(),
                _ = connected.recv() => {
                    self.line_is_down();
                    self.subscribe().await;
                }
                _ = beats.tick() => self.beat().await,
            }
        }
        self.line_is_down();
    }

    async fn subscribe(&mut self) {
        let channels = vec![
            ENDINGS.to_owned(),
            BEATS.to_owned(),
            self.announcements.replica.channel(),
        ];
        if let Err(error) = self.line.subscribe(channels).await {
            return tracing::warn!(%error, "asking Redis to tell of endings failed");
        }
        self.is_up = true;
        self.cache.line_is_up();
        self.announcements.listen(Instant::now());
        tracing::info!("Redis tells of sessions that end");
    }

    fn line_is_down(&mut self) {
        if std::mem::take(&mut self.is_up) {
            tracing::warn!("Redis does not tell of sessions that end: each request asks it");
        }
        self.cache.line_is_down();
        self.announcements.stop_listening();
    }

    /// It may have been an ending, and the life of a replica.
    fn missed_something(&self) {
        self.cache.forget_all();
        self.announcements.listen(Instant::now());
    }

    /// Says that we are alive, for whoever has asked us, and looks after the line.
    async fn beat(&mut self) {
        if !self.is_up {
            if self.line.is_connected() {
                self.subscribe().await;
            }
            return;
        }
        let now = Instant::now();
        if self.cache.is_line_silent(now) {
            self.line_is_down();
            let line = self.line.clone();
            // It is waited for elsewhere.
            tokio::spawn(async move { line.force_reconnection().await });
        } else if self.cache.take_asked() {
            let (redis, cache) = (self.redis.clone(), Arc::clone(&self.cache));
            let nanos = (now - self.origin).as_nanos();
            let beat = format!("{} {nanos}", self.announcements.replica.channel());
            tokio::spawn(async move {
                if redis.publish(BEATS, beat).await.is_ok() {
                    cache.beat_was_taken(now);
                }
            });
        }
    }

    fn hear(&self, message: &Message) {
        let text = message.value.as_str().unwrap_or_default();
        let words: Vec<_> = text.split(' ').collect();
        let is_understood = match (&*message.channel, &words[..]) {
            (ENDINGS, [from, number, ended]) => self.hear_ending(from, number, ended),
            (BEATS, [from, sent]) => self.hear_beat(from, sent),
            (_, [number, by]) => self.hear_confirmation(number, by),
            _ => None,
        };
        if is_understood.is_none() {
            // Whoever says it may mean anything.
            tracing::warn!(channel = %message.channel, "a message that no replica sends");
            self.missed_something();
        }
    }

    fn hear_ending(&self, from: &str, number: &str, ended: &str) -> Option<()> {
        let number = number.parse().ok()?;
        match ended.strip_prefix("user:") {
            Some(user) => self.cache.forget_user(UserId(user.parse().ok()?)),
            None => self.cache.forget(SessionId::parse(ended)?),
        }
        match Replica::of_channel(from) {
            Some(replica) if replica == self.announcements.replica => {
                self.announcements.came_back(number, Instant::now());
            }
            Some(other) => self.confirm(other, number),
            // Nobody waits for us.
            None => {}
        }
        Some(())
    }

    fn confirm(&self, other: Replica, number: u64) {
        let confirmation = format!("{number} {}", self.announcements.replica.channel());
        let redis = self.redis.clone();
        // To say so must not keep us from listening.
        tokio::spawn(async move { redis.publish(&other.channel(), confirmation).await });
    }

    fn hear_beat(&self, from: &str, sent: &str) -> Option<()> {
        let replica = Replica::of_channel(from)?;
        let sent = Duration::from_nanos(sent.parse().ok()?);
        let now = Instant::now();
        self.announcements.alive(replica, now);
        if replica == self.announcements.replica
            && let Some(sent) = self.origin.checked_add(sent).filter(|sent| *sent <= now)
        {
            self.cache.beat_was_heard(sent);
        }
        Some(())
    }

    fn hear_confirmation(&self, number: &str, by: &str) -> Option<()> {
        let replica = Replica::of_channel(by)?;
        self.announcements.heard(number.parse().ok()?, replica);
        Some(())
    }
}
