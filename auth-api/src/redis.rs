//! The connection to Redis: made again whenever it breaks, and never waited for long.

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::clients::{Client, SubscriberClient};
use fred::error::{Error as RedisError, ErrorKind};
use fred::interfaces::{ClientLike, PubsubInterface};
use fred::types::config::{Config, ReconnectPolicy};
use fred::types::scripts::Script;
use fred::types::{Builder, FromValue};
use parking_lot::Mutex;

use crate::metrics::StoreMetrics;
use crate::unavailable::Unavailable;

const STORE: &str = "Redis";
/// A command is over, or given up, well within a request's three seconds.
const DEADLINE: Duration = Duration::from_millis(1500);
/// Between two tries to connect, so that Redis is used again within a second of its return.
const RECONNECT: Duration = Duration::from_millis(200);
/// What may be told on a channel before we have listened to it: the endings of a busy moment.
const MESSAGES: usize = 2048;

/// A connection. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Redis {
    client: Client,
    config: Config,
    metrics: StoreMetrics,
    line: Arc<Mutex<Line>>,
}

/// What is known of the connection.
#[derive(Debug)]
struct Line {
    /// When Redis last said something.
    heard: Instant,
    is_being_replaced: bool,
}

impl Redis {
    /// Begins to connect; the server may come later than we.
    pub(crate) fn start(config: Config, metrics: StoreMetrics) -> Result<Self, RedisError> {
        let client = builder(config.clone()).build()?;
        client.connect();
        Ok(Self {
            client,
            config,
            metrics,
            line: Arc::new(Mutex::new(Line {
                heard: Instant::now(),
                is_being_replaced: false,
            })),
        })
    }

    /// A connection of its own that listens. It begins to connect when asked to.
    pub(crate) fn subscriber(&self) -> Result<SubscriberClient, RedisError> {
        builder(self.config.clone())
            .with_performance_config(|performance| {
                performance.broadcast_channel_capacity = MESSAGES;
            })
            .build_subscriber_client()
    }

    /// Runs a script.
    pub(crate) async fn run<T: FromValue>(
        &self,
        script: &Script,
        keys: Vec<String>,
        arguments: Vec<Bytes>,
    ) -> Result<T, Unavailable> {
        let (timer, asked) = (self.metrics.start(), Instant::now());
        let outcome = script
            .evalsha_with_reload(&self.client, keys, arguments)
            .await;
        timer.end(&outcome);
        self.look_after_line(asked, &outcome);
        outcome.map_err(failed)
    }

    /// Replaces a connection that has said nothing since a command that was given up: its peer may be
    /// gone without a word. The library looks for that too, but only where nothing more is sent.
    fn look_after_line<T>(&self, asked: Instant, outcome: &Result<T, RedisError>) {
        let is_late = |error: &RedisError| *error.kind() == ErrorKind::Timeout;
        let mut line = self.line.lock();
        if !outcome.as_ref().is_err_and(is_late) {
            line.heard = Instant::now();
        } else if line.heard < asked && !line.is_being_replaced && self.client.is_connected() {
            line.is_being_replaced = true;
            let (client, line) = (self.client.clone(), Arc::clone(&self.line));
            tokio::spawn(async move {
                let _ = client.force_reconnection().await;
                *line.lock() = Line {
                    heard: Instant::now(),
                    is_being_replaced: false,
                };
            });
        }
    }

    /// Tells whoever listens on a channel. That it is lost is for the listener to bear.
    pub(crate) async fn publish(&self, channel: &str, message: String) -> Result<(), RedisError> {
        let told = self.client.publish(channel, message).await;
        if let Err(error) = &told {
            tracing::debug!(%error, "a message to other replicas was lost");
        }
        told
    }

    /// Asks for the least that shows that it answers.
    pub(crate) async fn ping(&self) -> Result<(), Unavailable> {
        self.client.ping::<()>(None).await.map_err(failed)
    }
}

fn builder(config: Config) -> Builder {
    let mut builder = Builder::from_config(config);
    builder
        .with_connection_config(|connection| {
            connection.connection_timeout = DEADLINE;
            connection.internal_command_timeout = DEADLINE;
            connection.max_command_attempts = 1;
            connection.reconnect_on_auth_error = true;
            connection.unresponsive.max_timeout = Some(DEADLINE);
            connection.unresponsive.interval = Duration::from_millis(500);
        })
        .with_performance_config(|performance| {
            performance.default_command_timeout = DEADLINE;
        })
        .set_policy(ReconnectPolicy::new_constant(
            0,
            u32::try_from(RECONNECT.as_millis()).expect("it is short"),
        ));
    builder
}

/// A script's argument.
pub(crate) fn text(value: impl Display) -> Bytes {
    value.to_string().into()
}

/// An answer of Redis that no script of ours gives.
pub(crate) fn nonsense(what: &'static str) -> Unavailable {
    Unavailable::because(STORE, &what)
}

#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err")]
fn failed(error: RedisError) -> Unavailable {
    Unavailable::because(STORE, &error)
}
