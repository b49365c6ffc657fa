//! Quotas.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use http::{HeaderMap, StatusCode};

use crate::client::ClientKey;
use crate::config::{
    ErrorResponseSettings, QuotaKeyPart, RateLimitAlgorithm, RateLimitMode, RateLimitSettings,
};
use crate::features::rate_limit::{Quota, QuotaDecision, QuotaStore};
use crate::runtime::clock::Instant;

/// Rate limiting algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaAlgorithm {
    FixedWindow,
    SlidingWindow,
    TokenBucket,
    LeakyBucket,
}

/// Decision about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Passed { remaining: u32, delay: Duration },
    Rejected { retry_after_seconds: u64 },
}

/// Quota for each client, with a store of its own.
pub struct QuotaUnderTest {
    quota: Quota,
    store: QuotaStore,
}

impl QuotaUnderTest {
    /// Creates the quota that a path would have.
    #[must_use]
    pub fn new(
        algorithm: QuotaAlgorithm,
        quota: NonZeroU32,
        duration: Duration,
        bucket_size: NonZeroU32,
    ) -> Self {
        let store = QuotaStore::new();
        let settings = RateLimitSettings {
            quota,
            duration,
            algorithm: match algorithm {
                QuotaAlgorithm::FixedWindow => RateLimitAlgorithm::FixedWindow,
                QuotaAlgorithm::SlidingWindow => RateLimitAlgorithm::SlidingWindow,
                QuotaAlgorithm::TokenBucket => RateLimitAlgorithm::TokenBucket,
                QuotaAlgorithm::LeakyBucket => RateLimitAlgorithm::LeakyBucket,
            },
            mode: RateLimitMode::Enforce,
            per: vec![QuotaKeyPart::Client],
            bucket_size,
            error_response: ErrorResponseSettings {
                status: StatusCode::TOO_MANY_REQUESTS,
                message: String::new(),
            },
        };
        Self {
            quota: Quota::new("/", &settings),
            store,
        }
    }

    /// Decides about a request of a client at a time in nanoseconds, which must not decrease.
    #[must_use]
    pub fn take(&self, client: u8, now: u64) -> Decision {
        let client = ClientKey::from(IpAddr::V4(Ipv4Addr::new(192, 0, 2, client)));
        let headers = HeaderMap::new();
        let decision = self
            .quota
            .take(&self.store, client, "/", &headers, Instant(now));
        let (status, delay) = match decision {
            QuotaDecision::Passed(status) => (status, Duration::ZERO),
            QuotaDecision::Delayed(status, delay) => (status, delay),
            QuotaDecision::Rejected(_, retry_after_seconds) => {
                return Decision::Rejected {
                    retry_after_seconds,
                };
            }
        };
        Decision::Passed {
            remaining: status.remaining,
            delay,
        }
    }
}

impl fmt::Debug for QuotaUnderTest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.quota.fmt(formatter)
    }
}
