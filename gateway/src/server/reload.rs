//! Reload of the configuration without a restart: on SIGHUP, and when the file, a certificate or a
//! key changes. An invalid configuration changes nothing and is retried periodically, since a file
//! that it names may appear later, such as a mounted secret.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use supervision::Supervisor;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, Environment};
use crate::proxy::state::GatewayState;
use crate::runtime::fd_limit;

/// Interval at which the files are polled. Polling costs one system call per file, and notices what
/// inotify does not: changes on network file systems, and mounted secrets that are replaced by
/// renaming their folder.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Interval at which an invalid configuration is retried.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Interval at which warnings about certificates are repeated.
const WARNING_INTERVAL: Duration = Duration::from_hours(1);

/// Source of the configuration.
#[derive(Debug)]
pub(crate) struct ConfigSource {
    pub(crate) file: PathBuf,
    pub(crate) environment: Environment,
}

impl ConfigSource {
    /// Returns the current versions of the files that `config` was read from.
    pub(crate) fn file_versions(&self, config: &Config) -> Vec<FileVersion> {
        let certificates = config
            .certificates
            .iter()
            .flat_map(|certificate| [&certificate.files.cert, &certificate.files.key]);
        std::iter::once(&self.file)
            .chain(certificates)
            .map(|file| FileVersion::of(file))
            .collect()
    }
}

/// File and its identity; `None` if it does not exist.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FileVersion {
    file: PathBuf,
    identity: Option<FileIdentity>,
}

/// Attributes of which at least one differs after any change of a file: a new file has another inode
/// number, and the time of the last status change (ctime) is set by the kernel alone.
#[derive(Debug, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
    ctime: (i64, i64),
}

impl FileVersion {
    fn of(file: &Path) -> Self {
        let metadata = fs::metadata(file).ok();
        let identity = |metadata: fs::Metadata| FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
        };
        Self {
            file: file.to_owned(),
            identity: metadata.map(identity),
        }
    }
}

/// Background task that reloads the configuration.
#[derive(Debug)]
pub(crate) struct Reload {
    pub(crate) gateway: Arc<GatewayState>,
    pub(crate) source: ConfigSource,
    pub(crate) supervisor: Supervisor,
}

/// Name of the task in the metrics.
const TASK: &str = "reload";

/// State after the configuration on disk was read.
struct ReloadState {
    /// Versions of the files before they were read.
    versions: Vec<FileVersion>,
    failure: Option<ReloadFailure>,
}

/// Failure to use the configuration on disk.
struct ReloadFailure {
    reason: String,
    at: Instant,
}

#[async_trait]
impl BackgroundService for Reload {
    async fn start(&self, shutdown: ShutdownWatch) {
        self.supervisor
            .run(TASK, || self.watch(shutdown.clone()))
            .await;
    }
}

impl Reload {
    /// Reloads the configuration at every change, until the shutdown.
    async fn watch(&self, mut shutdown: ShutdownWatch) {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => {
                tracing::error!(%error, "SIGHUP cannot be watched: changes need a restart");
                return;
            }
        };
        // The files may have changed since the start.
        let mut state = self.reload(None);
        let mut warned_at = Instant::now();
        loop {
            if warned_at.elapsed() >= WARNING_INTERVAL {
                warned_at = Instant::now();
                self.gateway.certificates.log_warnings();
            }
            tokio::select! {
                // SIGHUP always logs the result, even one that was logged before.
                _ = hangup.recv() => state.failure = None,
                () = tokio::time::sleep(POLL_INTERVAL) => {
                    if !self.is_due(&state) {
                        continue;
                    }
                    self.wait_until_unchanged().await;
                }
                _ = shutdown.changed() => return,
            }
            state = self.reload(Some(&state));
        }
    }

    fn file_versions(&self) -> Vec<FileVersion> {
        self.source.file_versions(&self.gateway.current().config)
    }

    fn is_due(&self, state: &ReloadState) -> bool {
        let retry_is_due = |failure: &ReloadFailure| failure.at.elapsed() >= RETRY_INTERVAL;
        state.failure.as_ref().is_some_and(retry_is_due) || self.file_versions() != state.versions
    }

    /// Waits until the files stay unchanged for an interval: a certificate and its key are written one
    /// after the other.
    async fn wait_until_unchanged(&self) {
        const UNCHANGED_INTERVAL: Duration = Duration::from_millis(50);
        loop {
            let before = self.file_versions();
            tokio::time::sleep(UNCHANGED_INTERVAL).await;
            if self.file_versions() == before {
                return;
            }
        }
    }

    /// Reads the configuration on disk and activates it if it is valid.
    fn reload(&self, before: Option<&ReloadState>) -> ReloadState {
        loop {
            let versions = self.file_versions();
            let activation = || self.try_to_activate(before);
            let failure = self
                .supervisor
                .catch_blocking(TASK, activation)
                .unwrap_or_else(|panicked| Some(self.unusable(before, &panicked.to_string())));
            let names_other_files = || {
                let now = self.file_versions();
                let names = |all: &[FileVersion]| all.iter().map(|one| one.file.clone()).collect();
                let (before, now): (Vec<_>, Vec<_>) = (names(&versions), names(&now));
                before != now
            };
            // Files that the new configuration names have no version from before they were read.
            if failure.is_some() || !names_other_files() {
                return ReloadState { versions, failure };
            }
        }
    }

    /// Activates the configuration on disk, or returns the reason why it cannot be used. The reason is
    /// logged unless it was the reason before.
    fn try_to_activate(&self, before: Option<&ReloadState>) -> Option<ReloadFailure> {
        let config = match Config::load(&self.source.file, &self.source.environment) {
            Ok(config) => config,
            Err(errors) => {
                let count = errors.count();
                return Some(self.failure(before, errors.to_string(), |errors| {
                    tracing::error!(
                        count,
                        errors,
                        "configuration is invalid: the previous one stays active"
                    );
                }));
            }
        };
        let active = self.gateway.snapshot();
        if before.is_none() && config == active.config {
            return None;
        }
        log_warnings(&config);
        warn_about_fixed_settings(&active.config, &config);
        if let Err(error) = self.gateway.activate(config) {
            return Some(self.unusable(before, &format!("{error:#}")));
        }
        let hash = &self.gateway.current().config.hash;
        tracing::info!(hash, "configuration reloaded");
        None
    }

    /// Records that a valid configuration cannot be used.
    fn unusable(&self, before: Option<&ReloadState>, reason: &str) -> ReloadFailure {
        self.failure(before, reason.to_owned(), |error| {
            tracing::error!(%error, "configuration cannot be used: the previous one stays active");
        })
    }

    fn failure(
        &self,
        before: Option<&ReloadState>,
        reason: String,
        log: impl Fn(&str),
    ) -> ReloadFailure {
        let last = before.and_then(|state| state.failure.as_ref());
        if last.is_none_or(|failure| failure.reason != reason) {
            self.gateway.metrics.record_reload_failure();
            log(&reason);
        }
        let at = Instant::now();
        ReloadFailure { reason, at }
    }
}

/// Logs the warnings of a configuration.
pub(crate) fn log_warnings(config: &Config) {
    fd_limit::warn_if_exceeded(config.limits.max_connections);
    for warning in &config.warnings {
        tracing::warn!(warning, "configuration may not have the intended effect");
    }
}

/// Logs changes of settings that need a restart.
fn warn_about_fixed_settings(active: &Config, requested: &Config) {
    for (key, is_same) in [
        ("premier.listen", active.listen == requested.listen),
        ("premier.keyspace", active.keyspace == requested.keyspace),
    ] {
        if !is_same {
            tracing::warn!(key, "changed setting takes effect after a restart");
        }
    }
}
