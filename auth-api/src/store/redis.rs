//! Commands and scripts in Redis, with bounded waits.

use std::fmt::Display;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::error::{Error as RedisError, ErrorKind};
use fred::types::FromValue;
use fred::types::config::Config;
use fred::types::scripts::Script;
use redis_connection::{RedisConnection, has_too_few_replicas, is_not_persistent, is_read_only};

use crate::store::check::CheckError;
use crate::store::unavailable::Unavailable;
use crate::telemetry::metrics::StoreMetrics;

pub(crate) const STORE: &str = "Redis";

/// Redis, over one multiplexed connection. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Redis {
    pub(crate) connection: RedisConnection,
    metrics: StoreMetrics,
}

impl Redis {
    /// Starts to connect, without waiting: Redis may start after this program.
    pub(crate) fn start(config: Config, metrics: StoreMetrics) -> Result<Self, RedisError> {
        Ok(Self {
            connection: RedisConnection::start(config)?,
            metrics,
        })
    }

    /// Runs a Lua script.
    pub(crate) async fn run<T: FromValue>(
        &self,
        script: &Script,
        keys: Vec<String>,
        arguments: Vec<Bytes>,
    ) -> Result<T, Unavailable> {
        self.evaluate(script, keys, arguments).await.map_err(failed)
    }

    async fn evaluate<T: FromValue>(
        &self,
        script: &Script,
        keys: Vec<String>,
        arguments: Vec<Bytes>,
    ) -> Result<T, RedisError> {
        let (timer, sent_at) = (self.metrics.start(), Instant::now());
        let outcome = script
            .evalsha_with_reload(self.connection.client(), keys, arguments)
            .await;
        timer.stop(&outcome);
        self.connection.track(sent_at, &outcome);
        outcome
    }

    /// Checks that scripts may write: a Redis that is a replica, is out of memory or cannot persist
    /// responds to commands that only read.
    pub(crate) async fn check(&self) -> Result<(), CheckError> {
        let keys = vec![CHECK_KEY.to_owned()];
        let arguments = vec![argument(CHECK_KEY_LIFETIME.as_millis())];
        let outcome: Result<i64, _> = self.evaluate(&CHECK, keys, arguments).await;
        let Err(error) = outcome else {
            return Ok(());
        };
        let is_rejected = |error: &RedisError| problem_of(error) == CheckError::ConnectionRejected;
        // A command that waits for a connection only times out.
        if *error.kind() == ErrorKind::Timeout && self.connection.has_logged_error(is_rejected) {
            return Err(CheckError::ConnectionRejected);
        }
        Err(failed(error).into())
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

/// Converts a value to an argument of a script.
pub(crate) fn argument(value: impl Display) -> Bytes {
    value.to_string().into()
}

/// Returns the error for a reply that none of the scripts produces.
pub(crate) fn unexpected_reply(description: &'static str) -> Unavailable {
    Unavailable::because(STORE, &description)
}

/// Converts the error of a command.
#[expect(
    clippy::needless_pass_by_value,
    reason = "signature required by map_err"
)]
pub(crate) fn failed(error: RedisError) -> Unavailable {
    Unavailable::with_problem(STORE, problem_of(&error), &error)
}

/// Returns the kind of an error by its code (redis.io, "Redis serialization protocol specification",
/// simple errors). The error of a script has the code inside its text in Redis 6 and earlier.
fn problem_of(error: &RedisError) -> CheckError {
    let has_code = |code| error.details().contains(code);
    if is_read_only(error) {
        CheckError::ReadOnly
    } else if has_too_few_replicas(error) {
        CheckError::TooFewReplicas
    } else if has_code("OOM") {
        CheckError::OutOfMemory
    } else if is_not_persistent(error) {
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
