//! Connection to Redis, with bounded waits and automatic reconnection.

use std::fmt::Display;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::clients::{Client, SubscriberClient};
use fred::error::{Error as RedisError, ErrorKind};
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::config::{Config, ReconnectPolicy, Server};
use fred::types::scripts::Script;
use fred::types::{Builder, FromValue};
use parking_lot::Mutex;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::store::check::CheckError;
use crate::store::unavailable::Unavailable;
use crate::telemetry::metrics::StoreMetrics;

const STORE: &str = "Redis";
/// Longest duration of a command, well within the three seconds of a request.
const COMMAND_TIMEOUT: Duration = Duration::from_millis(1500);
/// Pause between connection attempts: Redis is used again within a second of its return.
const RECONNECT_DELAY: Duration = Duration::from_millis(200);
const UNRESPONSIVE_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Distinct errors of the connection that are logged until a command succeeds.
const MAX_LOGGED_ERRORS: usize = 8;
/// Received pub/sub messages that may wait for the subscriber. It bounds a burst of invalidations.
const PUBSUB_BUFFER_MESSAGES: usize = 2048;

/// Client with one multiplexed connection. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Redis {
    client: Client,
    config: Config,
    metrics: StoreMetrics,
    connection: Arc<Mutex<RedisConnectionState>>,
}

#[derive(Debug)]
struct RedisConnectionState {
    last_response: Instant,
    is_reconnecting: bool,
    /// Distinct errors of the connection since the last command that succeeded.
    logged_errors: Vec<RedisError>,
}

/// Reconnection in progress. Another one is possible after it was dropped.
struct Reconnection(Arc<Mutex<RedisConnectionState>>);

impl Drop for Reconnection {
    fn drop(&mut self) {
        let mut connection = self.0.lock();
        connection.last_response = Instant::now();
        connection.is_reconnecting = false;
    }
}

impl Redis {
    /// Starts to connect, without waiting: Redis may start after this program.
    pub(crate) fn start(config: Config, metrics: StoreMetrics) -> Result<Self, RedisError> {
        let client = builder(config.clone()).build()?;
        let connection = Arc::new(Mutex::new(RedisConnectionState {
            last_response: Instant::now(),
            is_reconnecting: false,
            logged_errors: Vec::new(),
        }));
        tokio::spawn(log_connection_errors(
            client.error_rx(),
            Arc::clone(&connection),
        ));
        client.connect();
        Ok(Self {
            client,
            config,
            metrics,
            connection,
        })
    }

    /// Returns a client with a connection of its own for pub/sub. It is not connected yet.
    pub(crate) fn subscriber(&self) -> Result<SubscriberClient, RedisError> {
        builder(self.config.clone())
            .with_performance_config(|performance| {
                performance.broadcast_channel_capacity = PUBSUB_BUFFER_MESSAGES;
            })
            .build_subscriber_client()
    }

    /// Runs a Lua script.
    pub(crate) async fn run<T: FromValue>(
        &self,
        script: &Script,
        keys: Vec<String>,
        arguments: Vec<Bytes>,
    ) -> Result<T, Unavailable> {
        let (timer, sent_at) = (self.metrics.start(), Instant::now());
        let outcome = script
            .evalsha_with_reload(&self.client, keys, arguments)
            .await;
        timer.stop(&outcome);
        self.track_connection(sent_at, &outcome);
        outcome.map_err(failed)
    }

    /// Replaces the connection if it has received nothing since a command was sent that timed out:
    /// the peer may be gone without closing it. The library detects that only while no further
    /// commands are sent. Also replaces it if the server has become a replica: after a failover the
    /// same address may lead to the new primary.
    fn track_connection<T>(&self, sent_at: Instant, outcome: &Result<T, RedisError>) {
        let is_timeout = |error: &RedisError| *error.kind() == ErrorKind::Timeout;
        let mut connection = self.connection.lock();
        let has_responded = !outcome.as_ref().is_err_and(is_timeout);
        if has_responded {
            connection.last_response = Instant::now();
        }
        if outcome.is_ok() {
            connection.logged_errors.clear();
        }
        let is_dead = !has_responded && connection.last_response < sent_at;
        let is_unusable = is_dead || outcome.as_ref().is_err_and(is_read_only);
        if is_unusable && !connection.is_reconnecting && self.client.is_connected() {
            connection.is_reconnecting = true;
            let client = self.client.clone();
            let reconnection = Reconnection(Arc::clone(&self.connection));
            tokio::spawn(async move {
                let _reconnection = reconnection;
                let _ = client.force_reconnection().await;
            });
        }
    }

    /// Publishes a message. A caller that needs it delivered has to detect the loss.
    pub(crate) async fn publish(&self, channel: &str, message: String) -> Result<(), RedisError> {
        let outcome = self.client.publish(channel, message).await;
        if let Err(error) = &outcome {
            tracing::debug!(%error, "publishing a message failed");
        }
        outcome
    }

    /// Checks that scripts may write: a Redis that is a replica, is out of memory or cannot persist
    /// responds to commands that only read.
    pub(crate) async fn check(&self) -> Result<(), CheckError> {
        let (timer, sent_at) = (self.metrics.start(), Instant::now());
        let keys = vec![CHECK_KEY.to_owned()];
        let arguments = vec![argument(CHECK_KEY_LIFETIME.as_millis())];
        let outcome: Result<i64, _> = CHECK
            .evalsha_with_reload(&self.client, keys, arguments)
            .await;
        timer.stop(&outcome);
        self.track_connection(sent_at, &outcome);
        let Err(error) = outcome else {
            return Ok(());
        };
        let is_rejected = |error: &RedisError| problem_of(error) == CheckError::ConnectionRejected;
        // A command that waits for a connection only times out.
        if *error.kind() == ErrorKind::Timeout
            && self.connection.lock().logged_errors.iter().any(is_rejected)
        {
            return Err(CheckError::ConnectionRejected);
        }
        Err(failed(error).into())
    }
}

/// Logs each distinct error of the connection once until a command succeeds: commands that wait for a
/// connection only time out. Ends with the client.
async fn log_connection_errors(
    mut errors: Receiver<(RedisError, Option<Server>)>,
    connection: Arc<Mutex<RedisConnectionState>>,
) {
    loop {
        let error = match errors.recv().await {
            Ok((error, _)) => error,
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        let logged = &mut connection.lock().logged_errors;
        if !logged.contains(&error) && logged.len() < MAX_LOGGED_ERRORS {
            tracing::error!(store = STORE, %error, "store connection failed");
            logged.push(error);
        }
    }
}

/// Writes with the commands that creating a session uses, which a role's ACL permits.
static CHECK: LazyLock<Script> = LazyLock::new(|| {
    Script::from_lua(
        r"
redis.call('HSET', KEYS[1], 'checked', 1)
return redis.call('PEXPIRE', KEYS[1], ARGV[1])
",
    )
});

/// Key that checks write, among those of sessions. No session has it, since it is no id.
const CHECK_KEY: &str = "session:check";
const CHECK_KEY_LIFETIME: Duration = Duration::from_mins(1);

/// Returns whether the server is a replica. The error of a script has the code inside its text in
/// Redis 6 and earlier.
fn is_read_only(error: &RedisError) -> bool {
    error.details().contains("READONLY")
}

fn builder(config: Config) -> Builder {
    let mut builder = Builder::from_config(config);
    builder
        .with_connection_config(|connection| {
            connection.connection_timeout = COMMAND_TIMEOUT;
            connection.internal_command_timeout = COMMAND_TIMEOUT;
            connection.max_command_attempts = 1;
            connection.reconnect_on_auth_error = true;
            connection.unresponsive.max_timeout = Some(COMMAND_TIMEOUT);
            connection.unresponsive.interval = UNRESPONSIVE_CHECK_INTERVAL;
        })
        .with_performance_config(|performance| {
            performance.default_command_timeout = COMMAND_TIMEOUT;
        })
        .set_policy(ReconnectPolicy::new_constant(
            0,
            u32::try_from(RECONNECT_DELAY.as_millis()).expect("the delay fits 32 bits"),
        ));
    builder
}

/// Converts a value to an argument of a script.
pub(crate) fn argument(value: impl Display) -> Bytes {
    value.to_string().into()
}

/// Returns the error for a reply that none of the scripts produces.
pub(crate) fn unexpected_reply(description: &'static str) -> Unavailable {
    Unavailable::because(STORE, &description)
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "signature required by map_err"
)]
fn failed(error: RedisError) -> Unavailable {
    Unavailable::with_problem(STORE, problem_of(&error), &error)
}

/// Returns the kind of an error by its code (redis.io, "Redis serialization protocol specification",
/// simple errors). The error of a script has the code inside its text in Redis 6 and earlier.
fn problem_of(error: &RedisError) -> CheckError {
    let has_code = |code| error.details().contains(code);
    if is_read_only(error) {
        CheckError::ReadOnly
    } else if has_code("OOM") {
        CheckError::OutOfMemory
    } else if has_code("MISCONF") {
        CheckError::NotPersistent
    } else if ["NOPERM", "NOAUTH", "WRONGPASS", "DB index"]
        .into_iter()
        .any(has_code)
        || *error.kind() == ErrorKind::Auth
    {
        CheckError::ConnectionRejected
    } else {
        CheckError::Unavailable
    }
}
