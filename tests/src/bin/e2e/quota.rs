//! A quota of which a client uses a part before an operation: what was used stays used.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use reqwest::Method;
use tests::client::{Client, send};
use tokio::runtime::Handle;

use crate::progress;

/// Path of `gateway.yml`. Each path that it matches has a quota of its own.
pub(crate) const PATH_SETTINGS: &str = r#"    - pattern: "/quota-probe/*"
      features: {rate_limit: {quota: 100, duration: 86400}}
"#;
const QUOTA: usize = 100;
/// Requests before the operation.
const USED: usize = 30;
/// Requests of the quota that are left after it.
pub(crate) const LEFT: usize = QUOTA - USED;

/// Number of probes, which makes their paths distinct.
static PROBES: AtomicUsize = AtomicUsize::new(0);

/// A quota of which [`USED`] requests are used.
pub(crate) struct UsedQuota {
    client: Client,
    path: String,
}

impl UsedQuota {
    /// Sends the first requests. To be called where a task may block.
    pub(crate) fn begin(client: Client) -> Result<Self> {
        let number = PROBES.fetch_add(1, Ordering::Relaxed);
        let path = format!("/quota-probe/{}-{number}", std::process::id());
        let quota = Self { client, path };
        let passed = quota.count_passed(USED)?;
        ensure!(
            passed == USED,
            "{passed} of the first {USED} requests passed"
        );
        Ok(quota)
    }

    /// Counts further requests that pass, reports their number, and checks that it is one of `expected`.
    pub(crate) fn expect_left(self, expected: std::ops::RangeInclusive<usize>) -> Result<()> {
        let left = self.count_passed(QUOTA)?;
        progress::report(&format!("{left} of {QUOTA} were left after {USED}"));
        ensure!(
            expected.contains(&left),
            "{left} requests passed after {USED} of {QUOTA}, expected {expected:?}"
        );
        Ok(())
    }

    /// Sends requests and returns how many are within the quota. Each second one names another client, which the gateway
    /// must not believe.
    fn count_passed(&self, requests: usize) -> Result<usize> {
        let mut passed = 0;
        for number in 0..requests {
            let request = self.client.request(Method::GET, &self.path);
            let request = match number % 2 {
                0 => request,
                _ => request.header("X-Forwarded-For", format!("203.0.113.{number}")),
            };
            let response = Handle::current().block_on(send(request))?;
            ensure!(
                response.status < 500,
                "{}: {}",
                response.status,
                response.text
            );
            passed += usize::from(response.status != 429);
        }
        Ok(passed)
    }
}
