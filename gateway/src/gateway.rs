//! What all requests share: the configuration that holds now, and what outlives it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use anyhow::Result;
use arc_swap::{ArcSwap, Guard};
use prometheus::IntGauge;
use tokio::sync::Notify;

use crate::access_log::AccessLog;
use crate::config::{Config, Limits};
use crate::features::rate_limit::QuotaStore;
use crate::metrics::Metrics;
use crate::route::Routes;
use crate::tls::Certificates;
use crate::upstream::Upstreams;

/// A configuration that is in effect.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) config: Config,
    pub(crate) routes: Routes,
    pub(crate) since: SystemTime,
}

/// The gateway: one of each.
#[derive(Debug)]
pub(crate) struct Gateway {
    live: ArcSwap<Live>,
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) quotas: QuotaStore,
    pub(crate) upstreams: Upstreams,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) access_log: AccessLog,
    pub(crate) started: SystemTime,
    /// Told when another configuration is in effect.
    pub(crate) changed: Notify,
    /// Connections that have no request in flight, and answers that are not sent yet.
    pub(crate) unsent: IntGauge,
    ending: AtomicBool,
}

impl Gateway {
    /// # Errors
    /// When the configuration's patterns take too much memory together.
    pub(crate) fn new(config: Config, access_log: AccessLog) -> Result<Self> {
        let metrics = Arc::new(Metrics::new(&config.keyspace));
        let quotas = QuotaStore::new();
        let certificates = Certificates::new(&config.certificates);
        metrics.certificates(certificates.expiries());
        let routes = Routes::new(&config, &quotas, &metrics, None)?;
        let since = SystemTime::now();
        metrics.in_effect(unix_seconds(since));
        Ok(Self {
            live: ArcSwap::from_pointee(Live {
                config,
                routes,
                since,
            }),
            certificates: Arc::new(certificates),
            quotas,
            upstreams: Upstreams::new(&metrics),
            metrics,
            access_log,
            started: since,
            changed: Notify::new(),
            unsent: IntGauge::new("unsent", "connections").expect("it is a good name"),
            ending: AtomicBool::new(false),
        })
    }

    /// The configuration that holds now, for as long as the caller needs it.
    pub(crate) fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// [`Gateway::live`] for a moment.
    pub(crate) fn glance(&self) -> Guard<Arc<Live>> {
        self.live.load()
    }

    /// What connections and requests may cost now.
    pub(crate) fn limits(&self) -> Limits {
        self.glance().config.limits
    }

    /// Puts a configuration into effect, for the next request. Quotas of rules that did not change
    /// go on counting.
    ///
    /// # Errors
    /// When its patterns take too much memory together; everything stays as it was.
    pub(crate) fn replace(&self, config: Config) -> Result<()> {
        let before = self.live();
        let routes = Routes::new(&config, &self.quotas, &self.metrics, Some(&before.routes))?;
        before.routes.forget_breakers_but_of(&routes);
        self.certificates.replace(&config.certificates);
        self.metrics.certificates(self.certificates.expiries());
        let since = SystemTime::now();
        self.live.store(Arc::new(Live {
            config,
            routes,
            since,
        }));
        self.metrics.in_effect(unix_seconds(since));
        self.metrics.reloaded();
        let live = self.glance();
        let patterns: HashSet<_> = live.routes.patterns().collect();
        self.metrics
            .keep_routes(|pattern| patterns.contains(pattern));
        self.changed.notify_one();
        Ok(())
    }

    /// From now on load balancers are told to look elsewhere.
    pub(crate) fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }
}

pub(crate) fn unix_seconds(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or_default()
}
