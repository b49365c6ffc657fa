//! Limits of what a client can make endpoints do, over all of its connections: upstream requests at once, and
//! upstream requests that it abandons, by `RST_STREAM` or by disconnecting, while an endpoint works on
//! them (rapid reset, CVE-2023-44487, spread over connections).
//!
//! Abandoned requests are limited by a token bucket in the form of GCRA (ITU-T I.371): a client may abandon
//! `max_abandoned_requests_per_client` at once and as many again in each [`WINDOW`]. While it is over the
//! limit, its requests get 429 instead of an endpoint; those under way go on, since its address may be
//! shared by many people (RFC 6888). The debt is at most one further window.
//!
//! Memory is fixed: counters are in tables that clients are hashed into, a count-min sketch (Cormode and
//! Muthukrishnan 2005). A client is over a limit if its counters in all rows are: one that shares a counter
//! with an attacker is not affected by it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use thiserror::Error;

use crate::client::ClientKey;
use crate::config::Limits;
use crate::runtime::clock::Instant;
use crate::telemetry::event_interval::EventInterval;
use crate::telemetry::metrics::{ClientLimitMetrics, Metrics};

/// Time in which a client may abandon the configured number of requests.
const WINDOW: Duration = Duration::from_secs(10);
/// Time after which a client that has too many requests at once should send the next one.
const CONCURRENCY_RETRY_AFTER: Duration = Duration::from_secs(1);
const ROWS: usize = 2;
/// Binary logarithm of the number of counters in a row: 256 KiB in all rows.
const ROW_BITS: u32 = 13;

/// Limit that a request would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum ClientLimitExceeded {
    #[error("Too many abandoned requests")]
    AbandonedRequests { retry_after: Duration },
    #[error("Too many concurrent requests")]
    ConcurrentRequests,
}

impl ClientLimitExceeded {
    pub(super) fn retry_after(self) -> Duration {
        match self {
            Self::AbandonedRequests { retry_after } => retry_after,
            Self::ConcurrentRequests => CONCURRENCY_RETRY_AFTER,
        }
    }
}

/// Counters of the clients that have a hash value.
#[derive(Debug, Default)]
struct Counters {
    concurrent: AtomicUsize,
    /// Theoretical arrival time of GCRA, in nanoseconds of the clock.
    abandoned_until: AtomicU64,
}

/// Counters of all clients.
#[derive(Debug)]
pub(crate) struct ClientLimits {
    rows: [Box<[Counters]>; ROWS],
    /// Random odd factors of multiplicative hashing (Dietzfelbinger et al. 1997).
    factors: [u64; ROWS],
    metrics: ClientLimitMetrics,
    rejection_logged: EventInterval,
}

impl ClientLimits {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let row = || (0..1 << ROW_BITS).map(|_| Counters::default()).collect();
        Self {
            rows: [row(), row()],
            factors: [fastrand::u64(..) | 1, fastrand::u64(..) | 1],
            metrics: metrics.client_limits.clone(),
            rejection_logged: EventInterval::default(),
        }
    }

    /// Returns a permit for one upstream request of a client.
    ///
    /// # Errors
    /// Returns the limit that the client is over.
    pub(super) fn acquire(
        &self,
        client: ClientKey,
        limits: &Limits,
        now: Instant,
    ) -> Result<ClientPermit<'_>, ClientLimitExceeded> {
        let counters = self.counters(client);
        let wait = counters.map(|counters| {
            let until = counters.abandoned_until.load(Ordering::Relaxed);
            Instant(until).since(now.saturating_add(WINDOW))
        });
        let retry_after = wait.into_iter().min().unwrap_or_default();
        if !retry_after.is_zero() {
            return Err(ClientLimitExceeded::AbandonedRequests { retry_after });
        }
        let permit = ClientPermit {
            limits: self,
            counters,
        };
        let before = counters.map(|counters| counters.concurrent.fetch_add(1, Ordering::Relaxed));
        let concurrent = before.into_iter().min().unwrap_or_default();
        if concurrent >= limits.max_upstream_requests_per_client {
            return Err(ClientLimitExceeded::ConcurrentRequests);
        }
        Ok(permit)
    }

    /// Counts a rejection, and logs it unless another one was logged less than a second ago.
    pub(super) fn record_rejection(
        &self,
        client: IpAddr,
        exceeded: ClientLimitExceeded,
        now: Instant,
    ) {
        let is_logged = self.rejection_logged.begin(now);
        match exceeded {
            ClientLimitExceeded::AbandonedRequests { .. } => {
                self.metrics.refused_abandoned.inc();
                if is_logged {
                    tracing::warn!(%client, "client abandons too many upstream requests: rejected with 429");
                }
            }
            ClientLimitExceeded::ConcurrentRequests => {
                self.metrics.refused_concurrent.inc();
                if is_logged {
                    tracing::warn!(%client, "client has too many concurrent upstream requests: rejected with 429");
                }
            }
        }
    }

    fn counters(&self, client: ClientKey) -> [&Counters; ROWS] {
        let key = client.fold();
        std::array::from_fn(|row| {
            let hash = key.wrapping_mul(self.factors[row]) >> (u64::BITS - ROW_BITS);
            let index = usize::try_from(hash).expect("it is less than the length of a row");
            &self.rows[row][index]
        })
    }
}

/// Permit for one upstream request. The request counts as concurrent until it is dropped.
#[derive(Debug)]
pub(super) struct ClientPermit<'l> {
    limits: &'l ClientLimits,
    counters: [&'l Counters; ROWS],
}

impl ClientPermit<'_> {
    /// Records that the client has abandoned the request.
    pub(super) fn record_abandonment(&self, limits: &Limits, now: Instant) {
        self.limits.metrics.abandoned.inc();
        let interval = WINDOW / limits.max_abandoned_requests_per_client.get();
        let latest = now.saturating_add(2 * WINDOW);
        for counters in self.counters {
            let update = |until| {
                let after = Instant(until).max(now).saturating_add(interval);
                Some(after.min(latest).0)
            };
            let until = &counters.abandoned_until;
            let _ = until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
        }
    }
}

impl Drop for ClientPermit<'_> {
    fn drop(&mut self) {
        for counters in self.counters {
            counters.concurrent.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Environment};

    fn limits(concurrent: u32, abandoned: u32) -> Limits {
        let yaml = format!(
            "premier: {{limits: {{max_upstream_requests_per_client: {concurrent}, \
             max_abandoned_requests_per_client: {abandoned}}}}}"
        );
        let environment = Environment::for_tests();
        let config = Config::parse("gateway.yml".as_ref(), &yaml, &environment).unwrap();
        config.limits
    }

    fn client(last: u8) -> ClientKey {
        ClientKey::from(IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn abandoned_requests_are_limited_and_forgiven_with_time() {
        let (all, limits) = (ClientLimits::new(&Metrics::new("test")), limits(100, 10));
        let now = Instant(1);
        let abandon = |count, now| {
            let permits: Vec<_> = (0..count)
                .map(|_| all.acquire(client(1), &limits, now).unwrap())
                .collect();
            for permit in permits {
                permit.record_abandonment(&limits, now);
            }
        };
        abandon(10, now);
        abandon(1, now);
        let exceeded = all.acquire(client(1), &limits, now).unwrap_err();
        assert_eq!(exceeded.retry_after(), WINDOW / 10);
        all.acquire(client(2), &limits, now).unwrap();

        let later = now.saturating_add(WINDOW / 10);
        abandon(90, later);
        let exceeded = all.acquire(client(1), &limits, later).unwrap_err();
        assert_eq!(exceeded.retry_after(), WINDOW);
        all.acquire(client(1), &limits, later.saturating_add(WINDOW))
            .unwrap();
    }

    #[test]
    fn concurrent_requests_are_limited_until_they_end() {
        let (all, limits) = (ClientLimits::new(&Metrics::new("test")), limits(2, 10));
        let acquire = |last| all.acquire(client(last), &limits, Instant::default());
        let first = acquire(1).unwrap();
        let _second = acquire(1).unwrap();
        assert_eq!(
            acquire(1).unwrap_err(),
            ClientLimitExceeded::ConcurrentRequests
        );
        acquire(2).unwrap();
        drop(first);
        acquire(1).unwrap();
    }

    #[test]
    fn a_client_that_shares_a_counter_with_another_is_not_limited() {
        let (all, limits) = (ClientLimits::new(&Metrics::new("test")), limits(1, 1));
        let shared = |one, other| std::ptr::eq(all.counters(one)[0], all.counters(other)[0]);
        // The hash is keyed at random: so many that one shares a counter with certainty.
        let attackers = (0..1_u32 << 24).map(|number| {
            let [_, high, middle, low] = number.to_be_bytes();
            ClientKey::from(IpAddr::from([198, high, middle, low]))
        });
        let mut attackers = attackers.filter(|attacker| shared(*attacker, client(1)));
        let attacker = attackers
            .find(|attacker| !std::ptr::eq(all.counters(*attacker)[1], all.counters(client(1))[1]))
            .unwrap();
        let permit = all.acquire(attacker, &limits, Instant(1)).unwrap();
        for _ in 0..10 {
            permit.record_abandonment(&limits, Instant(1));
        }
        assert!(all.acquire(attacker, &limits, Instant(1)).is_err());
        all.acquire(client(1), &limits, Instant(1)).unwrap();
    }
}
