//! Result of a load.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use tokio::task::JoinSet;

use crate::client::Client;

/// Statuses of a failing store or upstream.
pub(super) const OUTAGE_STATUSES: [u16; 3] = [502, 503, 504];
/// Number of accounts that are checked at the same time.
const PARALLEL_CHECKS: usize = 16;
/// Pause before a check that was rejected or failed is repeated.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Responses that the virtual users of a load received.
#[derive(Debug, Default, Clone)]
pub struct LoadReport {
    pub requests: u64,
    pub responses_by_status: BTreeMap<u16, u64>,
    /// Number of requests without a complete response.
    pub without_response: u64,
    /// Descriptions of responses that contradict earlier ones.
    pub contradictions: Vec<String>,
    /// Logins whose registration was acknowledged.
    pub registered_logins: Vec<String>,
    pub slowest: Duration,
}

impl LoadReport {
    /// Returns the number of requests with an outage as response or without one.
    #[must_use]
    pub fn failed_requests(&self) -> u64 {
        let outages: u64 = OUTAGE_STATUSES
            .iter()
            .filter_map(|status| self.responses_by_status.get(status))
            .sum();
        outages + self.without_response
    }

    /// Logs every registered login in and returns the number of those that fail.
    ///
    /// # Errors
    /// Returns an error if a login has no response.
    pub async fn count_lost_accounts(&self, client: &Client) -> Result<usize> {
        let mut lost = 0;
        for logins in self.registered_logins.chunks(PARALLEL_CHECKS) {
            let mut checks = JoinSet::new();
            for login in logins {
                checks.spawn(is_lost(client.clone(), login.clone()));
            }
            while let Some(is_lost) = checks.join_next().await {
                lost += usize::from(is_lost??);
            }
        }
        Ok(lost)
    }

    /// Returns the responses by status as text: `200: 12, 503: 3, no response: 1`.
    #[must_use]
    pub fn status_summary(&self) -> String {
        let mut parts: Vec<_> = self
            .responses_by_status
            .iter()
            .map(|(status, count)| format!("{status}: {count}"))
            .collect();
        if self.without_response > 0 {
            parts.push(format!("no response: {}", self.without_response));
        }
        parts.join(", ")
    }
}

async fn is_lost(client: Client, login: String) -> Result<bool> {
    loop {
        match client.login(&login).await?.status {
            200 => return Ok(false),
            429 | 502 | 503 | 504 => tokio::time::sleep(RETRY_PAUSE).await,
            _ => return Ok(true),
        }
    }
}
