//! Failures in Redis: `failures:{sha256}` is a count that expires with its window.

use std::sync::LazyLock;

use fred::types::scripts::Script;

use super::{Key, MOST_FAILURES, Outcome, WINDOW};
use crate::redis::{Redis, text};
use crate::unavailable::Unavailable;

/// KEYS: failures. ARGV: most failures. Milliseconds of the lock that are left, or 0.
static LOCKED: LazyLock<Script> = LazyLock::new(|| {
    Script::from_lua(
        r"
if tonumber(redis.call('GET', KEYS[1]) or 0) < tonumber(ARGV[1]) then return 0 end
return math.max(redis.call('PTTL', KEYS[1]), 1)
",
    )
});

/// KEYS: failures. ARGV: most failures, window (ms), 'right' or 'wrong'. As above.
static SETTLE: LazyLock<Script> = LazyLock::new(|| {
    Script::from_lua(
        r"
if tonumber(redis.call('GET', KEYS[1]) or 0) >= tonumber(ARGV[1]) then
  return math.max(redis.call('PTTL', KEYS[1]), 1)
end
if ARGV[3] == 'right' then
  redis.call('DEL', KEYS[1])
elseif redis.call('INCR', KEYS[1]) == 1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
",
    )
});

/// Counts in Redis.
#[derive(Debug, Clone)]
pub(crate) struct RedisThrottle(pub(crate) Redis);

impl RedisThrottle {
    pub(super) async fn locked_for(&self, key: Key) -> Result<u64, Unavailable> {
        let arguments = vec![text(MOST_FAILURES)];
        self.0.run(&LOCKED, vec![name(key)], arguments).await
    }

    pub(super) async fn settle(&self, key: Key, outcome: Outcome) -> Result<u64, Unavailable> {
        let outcome = match outcome {
            Outcome::Right => "right",
            Outcome::Wrong => "wrong",
        };
        let arguments = vec![text(MOST_FAILURES), text(WINDOW.as_millis()), text(outcome)];
        self.0.run(&SETTLE, vec![name(key)], arguments).await
    }
}

fn name(key: Key) -> String {
    use std::fmt::Write;
    key.iter()
        .fold(String::from("failures:"), |mut name, byte| {
            write!(name, "{byte:02x}").expect("a String takes everything");
            name
        })
}
