//! Verified tokens, and the subscription to session invalidations.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis_connection::RedisConnection;
use session_invalidation::{
    CacheEntry, CacheVersion, InvalidationTracker, LeasedCache, LookupSource, Subscriber,
};
use supervision::Supervisor;

use crate::config::RedisUrl;
use crate::identity::user_identity::SharedIdentity;
use crate::telemetry::metrics::IdentityMetrics;

/// Longest time for which a verified token is remembered, from the beginning of its check: with the three seconds for which
/// the replica that verified it may have cached its session, 30. They bound what auth-api does not publish: the expiry of a session,
/// the loss of Redis' data, and changes that an operator makes in a store. It is also the precision of the time at
/// which a session was last used.
const MAX_LIFETIME: Duration = Duration::from_secs(27);
/// Number of remembered tokens (about 25 MiB).
const MAX_TOKENS: usize = 50_000;
/// Interval at which the metrics are updated.
const METRICS_INTERVAL: Duration = Duration::from_secs(1);
/// Names of the tasks in the metrics.
const SUBSCRIBER_TASK: &str = "session_subscriber";
const METRICS_TASK: &str = "identity_metrics";

/// SHA-256 of a token.
pub(super) type TokenHash = [u8; 32];

/// Verified tokens, which are used while the gateway receives session invalidations.
#[derive(Debug)]
pub(super) struct VerifiedTokens {
    url: RedisUrl,
    cache: Arc<LeasedCache<TokenHash, SharedIdentity>>,
}

impl VerifiedTokens {
    /// Creates an empty cache. It stays empty until [`Self::run`] has subscribed.
    pub(super) fn new(url: &RedisUrl) -> Self {
        Self {
            url: url.clone(),
            cache: Arc::new(LeasedCache::new(LookupSource::CachingReplica, MAX_TOKENS)),
        }
    }

    /// Returns the identity of a remembered token.
    ///
    /// # Errors
    /// Returns the version to pass to [`Self::remember`] if the token is to be checked, which begins after this call.
    pub(super) fn get(&self, token: &TokenHash) -> Result<SharedIdentity, CacheVersion> {
        self.cache.get(token, Instant::now())
    }

    /// Remembers a token that was verified and expires in `expires_in`, unless its session may have ended
    /// since its check began.
    pub(super) fn remember(
        &self,
        token: TokenHash,
        identity: SharedIdentity,
        expires_in: Duration,
        version: CacheVersion,
    ) {
        let latest = version.began() + MAX_LIFETIME;
        let expires_at = Instant::now().checked_add(expires_in).unwrap_or(latest);
        let entry = CacheEntry {
            owner: identity.owner,
            value: identity,
            expires_at: expires_at.min(latest),
        };
        self.cache.insert(token, entry, version);
    }

    /// Keeps the gateway subscribed without end. The subscription ends when the future is dropped.
    pub(super) async fn run(&self, supervisor: &Supervisor, metrics: &IdentityMetrics) {
        let connection = match self.url.to_config() {
            Ok(config) => RedisConnection::start(config),
            Err(error) => {
                return tracing::error!(%error, "premier.identity.sessions cannot be used");
            }
        };
        let connection = match connection {
            Ok(connection) => OpenConnection(connection),
            Err(error) => {
                return tracing::error!(%error, "premier.identity.sessions cannot be used");
            }
        };
        let subscribe = || async {
            let (redis, cache) = (&connection.0, Arc::clone(&self.cache));
            let tracker = Arc::new(InvalidationTracker::new(Instant::now()));
            match Subscriber::new(redis, cache, tracker) {
                Ok(subscriber) => subscriber.run().await,
                Err(error) => {
                    tracing::error!(%error, "session invalidations cannot be subscribed to");
                }
            }
        };
        tokio::join!(
            supervisor.keep_running(SUBSCRIBER_TASK, subscribe),
            supervisor.run(METRICS_TASK, || self.update_metrics(metrics))
        );
    }

    async fn update_metrics(&self, metrics: &IdentityMetrics) {
        let mut interval = tokio::time::interval(METRICS_INTERVAL);
        loop {
            interval.tick().await;
            let count = i64::try_from(self.cache.len()).unwrap_or(i64::MAX);
            metrics.remembered_tokens.set(count);
        }
    }
}

/// Connection that is closed when it is dropped: the library keeps one that is not closed.
struct OpenConnection(RedisConnection);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let connection = self.0.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { connection.close().await });
        }
    }
}
