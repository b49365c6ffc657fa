//! State that all requests share: the active configuration, and what outlives a reload.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use anyhow::Result;
use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use logging::AccessLog;
use prometheus::IntGauge;
use tokio::sync::{Notify, watch};

use crate::config::{Certificate, Config, Limits};
use crate::features::rate_limit::QuotaStore;
use crate::features::rate_limit::hand_over::remote::RemoteCounters;
use crate::features::rate_limit::shared::SharedQuotas;
use crate::identity::Authenticator;
use crate::proxy::client_limits::ClientLimits;
use crate::proxy::response_budget::ResponseBudget;
use crate::proxy::route::Routes;
use crate::runtime::clock::unix_seconds;
use crate::telemetry::metrics::Metrics;
use crate::tls::certificates::Certificates;
use crate::upstream::{SharedConnector, TcpConnector, Upstreams};

/// Configuration that is in effect, with the routes compiled from it.
#[derive(Debug)]
pub(crate) struct ActiveConfig {
    pub(crate) config: Config,
    pub(crate) upstreams: Upstreams,
    pub(crate) routes: Routes,
    /// `None` if no path has `auth`.
    pub(crate) authenticator: Option<Arc<Authenticator>>,
    pub(crate) active_since: SystemTime,
}

/// State of the gateway.
#[derive(Debug)]
pub(crate) struct GatewayState {
    active: ArcSwap<ActiveConfig>,
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) quotas: QuotaStore,
    /// The process that `quotas` was handed over to, after an upgrade.
    pub(crate) remote_counters: ArcSwapOption<RemoteCounters>,
    /// Leases of quotas, if gateways share them.
    pub(crate) shared_quotas: Option<Arc<SharedQuotas>>,
    pub(crate) response_budget: Arc<ResponseBudget>,
    pub(crate) client_limits: ClientLimits,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) access_log: AccessLog,
    pub(crate) started: SystemTime,
    /// Notified after a configuration was activated.
    pub(crate) config_changed: watch::Sender<()>,
    /// Notified after a configuration with another authenticator was activated.
    pub(crate) authenticator_changed: Notify,
    /// Number of HTTP/2 connections whose exchanges are over and whose responses are not completely
    /// sent. Shutdown waits for them.
    pub(crate) unsent_responses: IntGauge,
    shutting_down: AtomicBool,
}

impl GatewayState {
    /// Creates the state with `config` as the active configuration.
    ///
    /// # Errors
    /// Returns an error if the path patterns together exceed the size limit of the matcher, or an upstream group or
    /// the identity needs the authorities that the system trusts and they cannot be read.
    pub(crate) fn new(config: Config, access_log: AccessLog) -> Result<Self> {
        Self::with_connector(config, access_log, Arc::new(TcpConnector::new()))
    }

    /// Creates the state, as [`Self::new`], with `connector` for all connections to servers.
    ///
    /// # Errors
    /// Returns an error, as [`Self::new`].
    pub(crate) fn with_connector(
        config: Config,
        access_log: AccessLog,
        connector: SharedConnector,
    ) -> Result<Self> {
        let metrics = Arc::new(Metrics::new(&config.keyspace));
        let quotas = QuotaStore::new();
        let certificates = Certificates::new(&config.certificates);
        metrics.set_certificates(all_expiries(&certificates, &config));
        let upstreams = Upstreams::with_connector(&config, &metrics, connector, None)?;
        let routes = Routes::new(&config, &upstreams, &metrics, None)?;
        let authenticator = authenticator(&config, &metrics, &upstreams, None)?;
        let has_quota_store = config.quotas.store.is_some();
        let shared_quotas =
            has_quota_store.then(|| Arc::new(SharedQuotas::new(metrics.quota_store())));
        let started = SystemTime::now();
        metrics.set_active_since(unix_seconds(started));
        Ok(Self {
            active: ArcSwap::from_pointee(ActiveConfig {
                config,
                upstreams,
                routes,
                authenticator,
                active_since: started,
            }),
            certificates: Arc::new(certificates),
            quotas,
            remote_counters: ArcSwapOption::empty(),
            shared_quotas,
            response_budget: Arc::new(ResponseBudget::new(&metrics.buffered_response_bytes)),
            client_limits: ClientLimits::new(&metrics),
            metrics,
            access_log,
            started,
            config_changed: watch::Sender::new(()),
            authenticator_changed: Notify::new(),
            unsent_responses: IntGauge::new("unsent", "connections").expect("the name is valid"),
            shutting_down: AtomicBool::new(false),
        })
    }

    /// Returns the active configuration. The caller may keep it across a reload.
    pub(crate) fn snapshot(&self) -> Arc<ActiveConfig> {
        self.active.load_full()
    }

    /// Returns the active configuration for immediate use: cheaper than [`Self::snapshot`], since the
    /// reference count stays as it is, but not to be held across an await.
    pub(crate) fn current(&self) -> Guard<Arc<ActiveConfig>> {
        self.active.load()
    }

    /// Returns the active limits of connections and requests.
    pub(crate) fn limits(&self) -> Limits {
        self.current().config.limits
    }

    /// Activates a configuration for all requests that begin from now on. Quotas and circuit breakers of
    /// unchanged rules keep their state, and upstream groups of the same name their endpoints.
    ///
    /// # Errors
    /// Returns an error, as [`Self::new`], and changes nothing.
    pub(crate) fn activate(&self, config: Config) -> Result<()> {
        let result = self.replace_active(config);
        let active = self.current();
        let patterns: HashSet<_> = active.routes.patterns().collect();
        self.metrics
            .retain_routes(|pattern| patterns.contains(pattern));
        result
    }

    fn replace_active(&self, config: Config) -> Result<()> {
        let previous = self.snapshot();
        let upstreams = Upstreams::new(&config, &self.metrics, Some(&previous.upstreams))?;
        let routes = Routes::new(&config, &upstreams, &self.metrics, Some(&previous.routes))?;
        let authenticator = authenticator(
            &config,
            &self.metrics,
            &upstreams,
            previous.authenticator.as_ref(),
        )?;
        let is_same_authenticator = match (&authenticator, &previous.authenticator) {
            (Some(next), Some(previous)) => Arc::ptr_eq(next, previous),
            (next, previous) => next.is_none() && previous.is_none(),
        };
        previous.routes.remove_breakers_not_in(&routes);
        self.certificates.replace(&config.certificates);
        let expiries = all_expiries(&self.certificates, &config);
        self.metrics.set_certificates(expiries);
        let active_since = SystemTime::now();
        self.active.store(Arc::new(ActiveConfig {
            config,
            upstreams,
            routes,
            authenticator,
            active_since,
        }));
        self.metrics.set_active_since(unix_seconds(active_since));
        self.metrics.record_reload_success();
        self.config_changed.send_replace(());
        if !is_same_authenticator {
            self.authenticator_changed.notify_one();
        }
        Ok(())
    }

    /// Makes health endpoints report the shutdown, so that load balancers send no new connections, and gives
    /// leases of quotas to other gateways.
    pub(crate) fn begin_shutdown(&self) {
        if let Some(quotas) = &self.shared_quotas {
            quotas.begin_drain();
        }
        self.shutting_down.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_shutting_down(&self) -> bool {
        self.shutting_down.load(Ordering::Relaxed)
    }
}

/// Returns the file of each certificate that the gateway presents to clients or to servers, and the end of its
/// validity in Unix time.
fn all_expiries(certificates: &Certificates, config: &Config) -> Vec<(String, i64)> {
    let to_servers = config.client_certificates().map(Certificate::expiry);
    certificates
        .expiries()
        .into_iter()
        .chain(to_servers)
        .collect()
}

/// Returns the authenticator of a configuration: `previous`, with the tokens that it remembers, if its settings are
/// the same.
fn authenticator(
    config: &Config,
    metrics: &Metrics,
    upstreams: &Upstreams,
    previous: Option<&Arc<Authenticator>>,
) -> Result<Option<Arc<Authenticator>>> {
    let Some(settings) = &config.identity else {
        return Ok(None);
    };
    if let Some(unchanged) = previous.filter(|previous| previous.settings == *settings) {
        return Ok(Some(Arc::clone(unchanged)));
    }
    let authenticator = Authenticator::new(settings, &metrics.identity, upstreams.connector())?;
    Ok(Some(Arc::new(authenticator)))
}
