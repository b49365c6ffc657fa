//! Limit of invalid tokens of a client: checking one costs a signature or a request to auth-api.
//!
//! A token bucket in the form of GCRA (ITU-T I.371) for each client, in tables of fixed size that clients are hashed
//! into, a count-min sketch (Cormode and Muthukrishnan 2005): a client is over the limit if its counters in all
//! rows are. Tokens that are remembered are not concerned.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::client::ClientKey;
use crate::runtime::clock::Instant;

/// Invalid tokens that a client may present at once, and again within each [`WINDOW`]. Many people may share an
/// address, and programs repeat a token after its session has ended.
const MAX_FAILURES: u32 = 1000;
const WINDOW: Duration = Duration::from_secs(10);
const ROWS: usize = 2;
/// Binary logarithm of the number of counters in a row: 128 KiB in all rows.
const ROW_BITS: u32 = 13;

/// Counters of all clients: theoretical arrival times of GCRA, in nanoseconds of the clock.
#[derive(Debug)]
pub(super) struct FailureLimit {
    rows: [Box<[AtomicU64]>; ROWS],
    /// Random odd factors of multiplicative hashing (Dietzfelbinger et al. 1997).
    factors: [u64; ROWS],
}

impl Default for FailureLimit {
    fn default() -> Self {
        let row = || (0..1 << ROW_BITS).map(|_| AtomicU64::new(0)).collect();
        Self {
            rows: std::array::from_fn(|_| row()),
            factors: std::array::from_fn(|_| fastrand::u64(..) | 1),
        }
    }
}

impl FailureLimit {
    /// Returns the time after which a client may present another unknown token, zero if it may now.
    pub(super) fn retry_after(&self, client: ClientKey, now: Instant) -> Duration {
        let waits = self.counters(client).map(|until| {
            let until = Instant(until.load(Ordering::Relaxed));
            until.since(now.saturating_add(WINDOW))
        });
        waits.into_iter().min().unwrap_or_default()
    }

    /// Records that a client has presented an invalid token.
    pub(super) fn record(&self, client: ClientKey, now: Instant) {
        let interval = WINDOW / MAX_FAILURES;
        let latest = now.saturating_add(2 * WINDOW);
        for until in self.counters(client) {
            let update = |until| {
                let after = Instant(until).max(now).saturating_add(interval);
                Some(after.min(latest).0)
            };
            let _ = until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
        }
    }

    fn counters(&self, client: ClientKey) -> [&AtomicU64; ROWS] {
        let key = client.fold();
        std::array::from_fn(|row| {
            let hash = key.wrapping_mul(self.factors[row]) >> (u64::BITS - ROW_BITS);
            let index = usize::try_from(hash).expect("it is less than the length of a row");
            &self.rows[row][index]
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn invalid_tokens_of_a_client_are_limited_and_forgiven_with_time() {
        let (limit, now) = (FailureLimit::default(), Instant(1));
        let client = |last| ClientKey::from(IpAddr::from([192, 0, 2, last]));
        for _ in 0..MAX_FAILURES {
            assert!(limit.retry_after(client(1), now).is_zero());
            limit.record(client(1), now);
        }
        limit.record(client(1), now);
        let wait = limit.retry_after(client(1), now);
        assert!(!wait.is_zero() && wait <= WINDOW, "{wait:?}");
        assert!(limit.retry_after(client(2), now).is_zero());
        assert!(
            limit
                .retry_after(client(1), now.saturating_add(wait))
                .is_zero()
        );
        for _ in 0..10 * MAX_FAILURES {
            limit.record(client(1), now);
        }
        assert!(limit.retry_after(client(1), now) <= WINDOW);
    }
}
