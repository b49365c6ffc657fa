//! Budget of the response bytes that wait in the gateway's memory for clients to read them, in total and per
//! client.
//!
//! An exchange buffers up to [`HIGH_WATERMARK`](crate::http::downstream::HIGH_WATERMARK), and a client can have
//! many exchanges whose responses it does not read: with flow-control windows of zero (RFC 9113, section
//! 6.9.2) they cost it nothing. While the budget is exhausted, an exchange reads from its endpoint only
//! what it has no other response bytes for, in small parts: the rest waits in the endpoint's socket, and
//! the endpoint is stopped by TCP's flow control. Each exchange makes progress as its client reads, so
//! that clients that do not read delay no others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::IntGauge;

use crate::client::ClientKey;
use crate::config::Limits;

/// Unit in which bytes are counted: short responses change no shared counter.
const UNIT: usize = 4 * 1024;
/// Binary logarithm of the number of counters for clients.
const COUNTER_BITS: u32 = 12;

/// Numbers of buffered bytes. Clients are counted by a hash: those that have the same one share their limit.
#[derive(Debug)]
pub(crate) struct ResponseBudget {
    total: IntGauge,
    per_client: Box<[AtomicUsize]>,
    /// Random odd factor of multiplicative hashing (Dietzfelbinger et al. 1997).
    factor: u64,
}

impl ResponseBudget {
    /// Creates a budget whose total is counted by `total`.
    pub(crate) fn new(total: &IntGauge) -> Self {
        Self {
            total: total.clone(),
            per_client: (0..1 << COUNTER_BITS)
                .map(|_| AtomicUsize::new(0))
                .collect(),
            factor: fastrand::u64(..) | 1,
        }
    }

    fn index(&self, client: ClientKey) -> usize {
        let hash = client.fold().wrapping_mul(self.factor) >> (u64::BITS - COUNTER_BITS);
        usize::try_from(hash).expect("it is less than the number of counters")
    }
}

/// Response bytes that are buffered for one request. They are given back when it is dropped.
#[derive(Debug)]
pub(crate) struct ResponseBuffer {
    budget: Arc<ResponseBudget>,
    /// Index of the client's counter.
    client: usize,
    /// Counted bytes, a multiple of [`UNIT`].
    counted: usize,
}

impl ResponseBuffer {
    pub(crate) fn new(budget: &Arc<ResponseBudget>, client: ClientKey) -> Self {
        Self {
            client: budget.index(client),
            budget: Arc::clone(budget),
            counted: 0,
        }
    }

    /// Records that `bytes` are buffered now.
    pub(crate) fn update(&mut self, bytes: usize) {
        let counted = bytes - bytes % UNIT;
        let change = i64::try_from(counted.abs_diff(self.counted)).unwrap_or(i64::MAX);
        // The counters protect no other memory.
        let of_client = &self.budget.per_client[self.client];
        if counted > self.counted {
            self.budget.total.add(change);
            of_client.fetch_add(counted - self.counted, Ordering::Relaxed);
        } else if counted < self.counted {
            self.budget.total.sub(change);
            of_client.fetch_sub(self.counted - counted, Ordering::Relaxed);
        }
        self.counted = counted;
    }

    /// Returns whether the client, or all together, have as many bytes buffered as they may.
    pub(crate) fn is_exhausted(&self, limits: &Limits) -> bool {
        let total = usize::try_from(self.budget.total.get()).unwrap_or(0);
        let of_client = self.budget.per_client[self.client].load(Ordering::Relaxed);
        total >= limits.max_buffered_bytes || of_client >= limits.max_buffered_bytes_per_client
    }
}

impl Drop for ResponseBuffer {
    fn drop(&mut self) {
        self.update(0);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::config::{Config, Environment};

    #[test]
    fn bytes_are_counted_in_total_and_per_client_and_given_back() {
        let yaml =
            "premier: {limits: {max_buffered_bytes: 100000, max_buffered_bytes_per_client: 65536}}";
        let environment = Environment::for_tests();
        let config = Config::parse("gateway.yml".as_ref(), yaml, &environment).unwrap();
        let limits = &config.limits;
        let total = IntGauge::new("total", "bytes").unwrap();
        let budget = Arc::new(ResponseBudget::new(&total));
        let client = |last| ClientKey::from(IpAddr::from([192, 0, 2, last]));
        let buffer = |client| ResponseBuffer::new(&budget, client);
        let others = (2..50).find(|last| budget.index(client(*last)) != budget.index(client(1)));
        let other = client(others.unwrap());

        let (mut first, second, mut third) = (buffer(client(1)), buffer(client(1)), buffer(other));
        first.update(UNIT - 1);
        assert_eq!(total.get(), 0);
        first.update(65536);
        assert!(first.is_exhausted(limits) && second.is_exhausted(limits));
        assert!(!third.is_exhausted(limits));
        third.update(40000);
        assert!(third.is_exhausted(limits), "the total is exhausted");
        drop(first);
        assert!(!second.is_exhausted(limits) && !third.is_exhausted(limits));
        drop(third);
        assert_eq!(total.get(), 0);
    }
}
