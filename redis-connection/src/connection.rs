//! Client with one multiplexed connection, which it replaces when it is dead.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::clients::{Client, SubscriberClient};
use fred::error::{Error as RedisError, ErrorKind};
use fred::interfaces::{ClientLike, EventInterface, HashesInterface, PubsubInterface};
use fred::types::Builder;
use fred::types::RespVersion;
use fred::types::config::{Config, ReconnectPolicy, Server};
use parking_lot::Mutex;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

/// Name of the store in log messages.
const STORE: &str = "Redis";
/// Limits of the connections of sessions.
const WAIT_LIMITS: WaitLimits = WaitLimits {
    // Well within the three seconds of a request.
    command_timeout: Duration::from_millis(1500),
    // Redis is used again within a second of its return.
    reconnect_delay: Duration::from_millis(200),
};
const UNRESPONSIVE_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Interval at which a connection is replaced while its server is no primary with enough replicas: its address may lead to one.
pub const REPLACEMENT_INTERVAL: Duration = Duration::from_secs(2);
/// Distinct errors of the connection that are logged until a command succeeds.
const MAX_LOGGED_ERRORS: usize = 8;
/// Received pub/sub messages that may wait for the subscriber. It bounds a burst of invalidations.
const PUBSUB_BUFFER_MESSAGES: usize = 2048;

/// Longest waits of a client.
#[derive(Debug, Clone, Copy)]
pub struct WaitLimits {
    /// Longest duration of a command, and of connecting.
    pub command_timeout: Duration,
    /// Pause between two attempts to connect. Their number is not limited.
    pub reconnect_delay: Duration,
}

/// Client with one multiplexed connection. Cheap to clone. Its `Debug` does not show the configuration, which may have a password.
#[derive(Clone)]
pub struct RedisConnection {
    client: Client,
    config: Config,
    state: Arc<Mutex<ConnectionState>>,
}

impl fmt::Debug for RedisConnection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RedisConnection")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct ConnectionState {
    /// Time of the last response, or from which on one is expected.
    last_response: Instant,
    last_success: Option<Success>,
    /// Event for each connection that has been opened.
    opened: Receiver<Server>,
    /// Number of the present connection.
    number: u64,
    /// Time from which on successful commands were sent on the present connection.
    opened_by: Instant,
    /// Time at which the connection was last replaced.
    replaced_at: Option<Instant>,
    is_reconnecting: bool,
    /// Distinct errors of the connection since the last command that succeeded.
    logged_errors: Vec<RedisError>,
}

/// Command that succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Success {
    /// Time at which it was sent.
    pub sent_at: Instant,
    /// Number of the connection that it was sent on.
    connection: u64,
}

impl ConnectionState {
    /// Forgets what succeeded on another connection than the present one: it may lead to another server.
    fn recognise_connection(&mut self) {
        let mut is_new = false;
        while !matches!(
            self.opened.try_recv(),
            Err(TryRecvError::Empty | TryRecvError::Closed)
        ) {
            is_new = true;
        }
        if is_new {
            self.number += 1;
            self.opened_by = Instant::now();
            self.last_success = None;
        }
    }

    fn record_success(&mut self, sent_at: Instant) {
        // One that was sent earlier may have succeeded on the connection before.
        if sent_at >= self.opened_by
            && self
                .last_success
                .is_none_or(|success| success.sent_at < sent_at)
        {
            self.last_success = Some(Success {
                sent_at,
                connection: self.number,
            });
        }
    }
}

/// Reconnection in progress. Another one is possible after it was dropped.
struct Reconnection(Arc<Mutex<ConnectionState>>);

impl Drop for Reconnection {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.last_response = Instant::now();
        state.is_reconnecting = false;
    }
}

impl RedisConnection {
    /// Starts to connect, without waiting: Redis may start after the program.
    ///
    /// # Errors
    /// Returns an error if `config` is invalid.
    pub fn start(config: Config) -> Result<Self, RedisError> {
        let client = client_builder(config.clone(), WAIT_LIMITS).build()?;
        let state = Arc::new(Mutex::new(ConnectionState {
            last_response: Instant::now(),
            last_success: None,
            opened: client.reconnect_rx(),
            number: 0,
            opened_by: Instant::now(),
            replaced_at: None,
            is_reconnecting: false,
            logged_errors: Vec::new(),
        }));
        tokio::spawn(log_errors(client.error_rx(), Arc::clone(&state)));
        client.connect();
        Ok(Self {
            client,
            config,
            state,
        })
    }

    /// Returns the client, for commands. The outcome of each is to be passed to [`Self::track`].
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns a client with a connection of its own for pub/sub, on which commands can be sent as well (RESP3, Redis 6). It is not
    /// connected yet.
    ///
    /// # Errors
    /// Returns an error if the configuration is invalid.
    pub fn subscriber(&self) -> Result<SubscriberClient, RedisError> {
        let config = Config {
            version: RespVersion::RESP3,
            ..self.config.clone()
        };
        client_builder(config, WAIT_LIMITS)
            .with_performance_config(|performance| {
                performance.broadcast_channel_capacity = PUBSUB_BUFFER_MESSAGES;
            })
            .build_subscriber_client()
    }

    /// Replaces the connection if it has received nothing since a command was sent that timed out:
    /// the peer may be gone without closing it. The library detects that only while no further
    /// commands are sent. Also replaces it, at intervals, if the server has become a replica or has too few replicas: after a
    /// failover the same address may lead to the new primary.
    pub fn track<T>(&self, sent_at: Instant, outcome: &Result<T, RedisError>) {
        let is_timeout = |error: &RedisError| *error.kind() == ErrorKind::Timeout;
        let mut state = self.state.lock();
        state.recognise_connection();
        let has_responded = !outcome.as_ref().is_err_and(is_timeout);
        if has_responded {
            state.last_response = Instant::now();
        }
        // A failure other than a timeout may be that of the connection.
        if outcome.is_ok() {
            state.record_success(sent_at);
            state.logged_errors.clear();
        }
        let is_dead = !has_responded && state.last_response < sent_at;
        let is_replacement_due = state
            .replaced_at
            .is_none_or(|at| at.elapsed() >= REPLACEMENT_INTERVAL);
        let is_no_primary = |error: &RedisError| is_read_only(error) || has_too_few_replicas(error);
        let is_unusable =
            is_dead || is_replacement_due && outcome.as_ref().is_err_and(is_no_primary);
        if is_unusable && !state.is_reconnecting && self.client.is_connected() {
            state.is_reconnecting = true;
            state.replaced_at = Some(Instant::now());
            let client = self.client.clone();
            let reconnection = Reconnection(Arc::clone(&self.state));
            tokio::spawn(async move {
                let _reconnection = reconnection;
                let _ = client.force_reconnection().await;
            });
        }
    }

    /// Publishes a message. A caller that needs it delivered has to detect the loss.
    ///
    /// # Errors
    /// Returns an error if Redis has not accepted it.
    pub async fn publish(&self, channel: &str, message: String) -> Result<(), RedisError> {
        let sent_at = Instant::now();
        let outcome = self.client.publish(channel, message).await;
        self.track(sent_at, &outcome);
        if let Err(error) = &outcome {
            tracing::debug!(%error, "publishing a message failed");
        }
        outcome
    }

    /// Returns the command that was sent last of those that have succeeded on the present connection.
    #[must_use]
    pub fn last_success(&self) -> Option<Success> {
        let mut state = self.state.lock();
        state.recognise_connection();
        state.last_success
    }

    /// Returns whether no other connection was opened since a command succeeded: one that has succeeded after it was sent
    /// to the same server then.
    #[must_use]
    pub fn is_current(&self, success: Success) -> bool {
        let mut state = self.state.lock();
        state.recognise_connection();
        success.connection == state.number
    }

    /// Checks that the server is the primary, as [`confirm_primary`] does.
    ///
    /// # Errors
    /// Returns an error if it is not, or does not respond.
    pub async fn confirm_primary(&self, key: &str) -> Result<(), RedisError> {
        let sent_at = Instant::now();
        let outcome = confirm_primary(&self.client, key).await;
        self.track(sent_at, &outcome);
        outcome
    }

    /// Closes the connection. The library keeps one that is not closed.
    pub async fn close(&self) {
        let _ = self.client.quit().await;
    }

    /// Returns whether one of the connection's errors since the last command that succeeded satisfies
    /// `predicate`.
    pub fn has_logged_error(&self, predicate: impl Fn(&RedisError) -> bool) -> bool {
        self.state.lock().logged_errors.iter().any(predicate)
    }
}

/// Logs each distinct error of the connection once until a command succeeds: commands that wait for a
/// connection only time out. Ends with the client.
async fn log_errors(
    mut errors: Receiver<(RedisError, Option<Server>)>,
    state: Arc<Mutex<ConnectionState>>,
) {
    loop {
        let error = match errors.recv().await {
            Ok((error, _)) => error,
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        let logged = &mut state.lock().logged_errors;
        if !logged.contains(&error) && logged.len() < MAX_LOGGED_ERRORS {
            tracing::error!(store = STORE, %error, "store connection failed");
            logged.push(error);
        }
    }
}

/// Returns whether the server is a replica. The error of a script has the code inside its text in
/// Redis 6 and earlier.
#[must_use]
pub fn is_read_only(error: &RedisError) -> bool {
    error.details().contains("READONLY")
}

/// Checks that a server is a primary that has as many replicas as its `min-replicas-to-write`, by a write that changes
/// nothing: it deletes a field of `key`, which does not exist. A server that rejects writes because it cannot persist them
/// (`MISCONF`), or for the type of the key (`WRONGTYPE`), may be the primary.
///
/// # Errors
/// Returns an error if the server is no such primary (`NOREPLICAS`, `READONLY`), or does not respond.
pub async fn confirm_primary(client: &impl HashesInterface, key: &str) -> Result<(), RedisError> {
    match client.hdel::<i64, _, _>(key, "").await {
        Err(error) if !is_not_persistent(&error) && !error.details().contains("WRONGTYPE") => {
            Err(error)
        }
        _ => Ok(()),
    }
}

/// Returns whether the server has fewer replicas than its `min-replicas-to-write`.
#[must_use]
pub fn has_too_few_replicas(error: &RedisError) -> bool {
    error.details().contains("NOREPLICAS")
}

/// Returns whether the server rejects writes because it cannot persist them.
#[must_use]
pub fn is_not_persistent(error: &RedisError) -> bool {
    error.details().contains("MISCONF")
}

/// Returns the builder of a client for one server, which may start after the program. A command that may have been
/// executed is not sent again.
///
/// # Panics
/// Panics if `reconnect_delay` is longer than 49 days.
#[must_use]
pub fn client_builder(config: Config, limits: WaitLimits) -> Builder {
    let WaitLimits {
        command_timeout,
        reconnect_delay,
    } = limits;
    let mut builder = Builder::from_config(Config {
        // Otherwise the library gives up if the first attempt to connect fails, and sends no command ever.
        fail_fast: false,
        ..config
    });
    builder
        .with_connection_config(|connection| {
            connection.connection_timeout = command_timeout;
            connection.internal_command_timeout = command_timeout;
            connection.max_command_attempts = 1;
            connection.reconnect_on_auth_error = true;
            connection.unresponsive.max_timeout = Some(command_timeout);
            connection.unresponsive.interval = UNRESPONSIVE_CHECK_INTERVAL;
        })
        .with_performance_config(|performance| {
            performance.default_command_timeout = command_timeout;
        })
        .set_policy(ReconnectPolicy::new_constant(
            0,
            u32::try_from(reconnect_delay.as_millis()).expect("the delay fits 32 bits"),
        ));
    builder
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast::{self, Sender};

    use super::*;

    fn connection() -> (RedisConnection, Sender<Server>) {
        let connection = RedisConnection::start(Config::default()).unwrap();
        let (opened, events) = broadcast::channel(4);
        connection.state.lock().opened = events;
        (connection, opened)
    }

    #[tokio::test]
    async fn a_command_that_fails_with_its_connection_is_no_success() {
        let (connection, _) = connection();
        let sent_at = Instant::now();
        let failure = RedisError::new(ErrorKind::IO, "connection reset");
        connection.track::<()>(sent_at, &Err(failure));
        assert_eq!(connection.last_success(), None);
        connection.track(sent_at, &Ok(()));
        let success = connection.last_success().unwrap();
        assert_eq!(success.sent_at, sent_at);
        assert!(connection.is_current(success));
    }

    #[tokio::test]
    async fn a_success_on_an_earlier_connection_says_nothing_of_the_present_one() {
        let (connection, opened) = connection();
        connection.track(Instant::now(), &Ok(()));
        let success = connection.last_success().unwrap();
        let sent_at = Instant::now();
        opened.send(Server::new("127.0.0.1", 6379)).unwrap();
        assert!(!connection.is_current(success));
        assert_eq!(connection.last_success(), None);
        // It may have been responded to on either connection.
        connection.track(sent_at, &Ok(()));
        assert_eq!(connection.last_success(), None);
        connection.track(Instant::now(), &Ok(()));
        assert!(connection.last_success().is_some());
        assert!(!connection.is_current(success));
    }
}
