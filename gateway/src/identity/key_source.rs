//! Key set of the issuer, fetched in the background.
//!
//! It is fetched at the start, periodically, and at a bounded rate when a token names a key that it does not
//! have. A set that was fetched stays in use while its source is away. Requests never wait for it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use arc_swap::{ArcSwap, Guard};
use http::StatusCode;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::config::HttpUrl;
use crate::identity::key_set::KeySet;
use crate::runtime::clock::unix_seconds;
use crate::telemetry::metrics::IdentityMetrics;
use crate::upstream::{OriginClient, SharedConnector};

/// Time after which a set is fetched again.
const REFRESH_INTERVAL: Duration = Duration::from_mins(5);
/// Least time between two attempts, and from a failed one to the next.
const MIN_INTERVAL: Duration = Duration::from_secs(5);
const FETCH_TIMEOUT: Duration = Duration::from_secs(3);
const MAX_SET_BYTES: usize = 64 * 1024;

/// Key set and its source.
#[derive(Debug)]
pub(super) struct KeySource {
    url: HttpUrl,
    client: OriginClient,
    current: ArcSwap<KeySet>,
    unknown_key: Notify,
}

impl KeySource {
    /// Creates a source whose set is empty until it was fetched.
    ///
    /// # Errors
    /// Returns an error, as [`OriginClient::new`].
    pub(super) fn new(url: &HttpUrl, connector: &SharedConnector) -> Result<Self> {
        Ok(Self {
            url: url.clone(),
            client: OriginClient::new(url.clone(), MAX_SET_BYTES, connector)?,
            current: ArcSwap::default(),
            unknown_key: Notify::new(),
        })
    }

    pub(super) fn current(&self) -> Guard<Arc<KeySet>> {
        self.current.load()
    }

    /// Has the set fetched soon, since a token names a key that it does not have.
    pub(super) fn request_refresh(&self) {
        self.unknown_key.notify_one();
    }

    /// Fetches the set without end.
    pub(super) async fn run(&self, metrics: &IdentityMetrics) {
        let (mut last_error, mut is_logged) = (None, false);
        loop {
            let attempted = Instant::now();
            let wait = match self.fetch().await {
                Ok(set) => {
                    metrics.key_fetches_success.inc();
                    metrics
                        .keys_fetched_timestamp
                        .set(unix_seconds(SystemTime::now()));
                    is_logged &= last_error.is_none() && **self.current.load() == set;
                    if !is_logged {
                        tracing::info!(url = %self.url, keys = set.len(), "key set fetched");
                    }
                    self.current.store(Arc::new(set));
                    (last_error, is_logged) = (None, true);
                    REFRESH_INTERVAL
                }
                Err(error) => {
                    metrics.key_fetches_failure.inc();
                    let error = format!("{error:#}");
                    if last_error.as_ref() != Some(&error) {
                        tracing::warn!(url = %self.url, error, "key set cannot be fetched: the previous one stays in use");
                    }
                    last_error = Some(error);
                    MIN_INTERVAL
                }
            };
            tokio::select! {
                () = sleep_until(attempted + wait) => {}
                () = self.unknown_key.notified() => sleep_until(attempted + MIN_INTERVAL).await,
            }
        }
    }

    async fn fetch(&self) -> Result<KeySet> {
        let accept: (&str, &[u8]) = ("accept", b"application/json");
        self.client.maintain().await?;
        let response = self.client.get(&[accept], FETCH_TIMEOUT).await?;
        if response.status != StatusCode::OK {
            bail!("status {}", response.status.as_u16());
        }
        KeySet::parse(&response.body).context("the response is no key set")
    }
}
