//! Failures in Redis: `failures:{sha256}` is a counter that expires at the end of its window.

use std::sync::LazyLock;

use fred::types::scripts::Script;

use super::policy::{FAILURE_WINDOW, LoginOutcome, MAX_FAILURES, ScopeKey};
use crate::store::redis::{Redis, argument};
use crate::store::unavailable::Unavailable;

/// KEYS: counter. ARGV: maximum of failures. Returns the remaining milliseconds of the lock, or 0.
static CHECK: LazyLock<Script> = LazyLock::new(|| {
    Script::from_lua(
        r"
if tonumber(redis.call('GET', KEYS[1]) or 0) < tonumber(ARGV[1]) then return 0 end
return math.max(redis.call('PTTL', KEYS[1]), 1)
",
    )
});

/// KEYS: counter. ARGV: maximum of failures, window (ms), 'success' or 'failure'. Returns the
/// remaining milliseconds of the lock, or 0.
static RECORD: LazyLock<Script> = LazyLock::new(|| {
    Script::from_lua(
        r"
if tonumber(redis.call('GET', KEYS[1]) or 0) >= tonumber(ARGV[1]) then
  return math.max(redis.call('PTTL', KEYS[1]), 1)
end
if ARGV[3] == 'success' then
  redis.call('DEL', KEYS[1])
elseif redis.call('INCR', KEYS[1]) == 1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
",
    )
});

/// KEYS: counter.
static CLEAR: LazyLock<Script> =
    LazyLock::new(|| Script::from_lua("return redis.call('DEL', KEYS[1])"));

/// Counters in Redis. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct RedisThrottle(pub(crate) Redis);

impl RedisThrottle {
    pub(super) async fn remaining_lock(&self, scope: ScopeKey) -> Result<u64, Unavailable> {
        let arguments = vec![argument(MAX_FAILURES)];
        self.0.run(&CHECK, vec![counter(scope)], arguments).await
    }

    pub(super) async fn clear(&self, scope: ScopeKey) -> Result<(), Unavailable> {
        let deleted: Result<u64, _> = self.0.run(&CLEAR, vec![counter(scope)], Vec::new()).await;
        deleted.map(drop)
    }

    pub(super) async fn record(
        &self,
        scope: ScopeKey,
        outcome: LoginOutcome,
    ) -> Result<u64, Unavailable> {
        let outcome = match outcome {
            LoginOutcome::Success => "success",
            LoginOutcome::Failure => "failure",
        };
        let arguments = vec![
            argument(MAX_FAILURES),
            argument(FAILURE_WINDOW.as_millis()),
            argument(outcome),
        ];
        self.0.run(&RECORD, vec![counter(scope)], arguments).await
    }
}

/// Returns the key of a scope's counter.
fn counter(scope: ScopeKey) -> String {
    use std::fmt::Write;
    scope
        .iter()
        .fold(String::from("failures:"), |mut key, byte| {
            write!(key, "{byte:02x}").expect("writing to a String succeeds");
            key
        })
}
