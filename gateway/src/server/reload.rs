//! Reload of the configuration without a restart: on SIGHUP, and when the file, a certificate or a
//! key changes. An invalid configuration changes nothing and is retried periodically, since a file
//! that it names may appear later, such as a mounted secret.
//!
//! A file that is written in place is incomplete for a while, and what is there already may be valid. So
//! changed files are read after they have not changed for [`SETTLING_TIME`], longer if the last line of
//! the configuration has no line break, and are read again if they changed meanwhile. A writer that
//! pauses for longer is not noticed: it has to write another file and rename it. SIGHUP does not
//! wait: its sender says that the files are complete.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use supervision::{Panicked, Supervisor};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, ConfigErrors, Environment, ListenAddresses, RedisUrl};
use crate::proxy::state::GatewayState;
use crate::runtime::fd_limit;

/// Interval at which the files are polled. Polling costs one system call per file, and notices what
/// inotify does not: changes on network file systems, and mounted secrets that are replaced by
/// renaming their folder.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Time for which changed files have to stay unchanged before they are read.
const SETTLING_TIME: Duration = Duration::from_secs(1);
/// The same for a configuration whose last line has no line break, as it is while a part of the line has
/// been written.
const INCOMPLETE_LINE_SETTLING_TIME: Duration = Duration::from_secs(5);
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
        std::iter::once(&*self.file)
            .chain(config.certificate_files())
            .map(FileVersion::of)
            .collect()
    }
}

/// File and its identity; `None` if it does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileVersion {
    file: PathBuf,
    identity: Option<FileIdentity>,
}

/// Attributes of which at least one differs after any change of a file: a new file has another inode
/// number, and the time of the last status change (ctime) is set by the kernel alone.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    pub(crate) fixed: FixedSettings,
    pub(crate) supervisor: Supervisor,
}

/// Settings that only a start applies, as this process has them.
#[derive(Debug, Clone)]
pub(crate) struct FixedSettings {
    listen: ListenAddresses,
    keyspace: String,
    quota_store: Option<RedisUrl>,
}

impl FixedSettings {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            listen: config.listen,
            keyspace: config.keyspace.clone(),
            quota_store: config.quotas.store.clone(),
        }
    }

    /// Logs the settings of `requested` that need a restart.
    fn warn_if_changed(&self, requested: &Config) {
        for (key, is_same) in [
            ("premier.listen", self.listen == requested.listen),
            ("premier.keyspace", self.keyspace == requested.keyspace),
            (
                "premier.quotas.store",
                self.quota_store == requested.quotas.store,
            ),
        ] {
            if !is_same {
                tracing::warn!(key, "changed setting takes effect after a restart");
            }
        }
    }
}

/// Name of the task in the metrics.
const TASK: &str = "reload";

/// Versions of the files, and since when they have been the same.
struct Observation {
    versions: Vec<FileVersion>,
    since: Instant,
}

impl Observation {
    fn begin(versions: Vec<FileVersion>) -> Self {
        let since = Instant::now();
        Self { versions, since }
    }

    fn update(&mut self, versions: Vec<FileVersion>) {
        if versions != self.versions {
            *self = Self::begin(versions);
        }
    }
}

/// Configuration on disk, and the versions of the files before they were read.
struct Reading {
    versions: Vec<FileVersion>,
    /// An error if parsing panicked.
    config: Result<Result<Config, ConfigErrors>, Panicked>,
}

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
        let mut observed = Observation::begin(self.file_versions());
        let mut warned_at = Instant::now();
        loop {
            if warned_at.elapsed() >= WARNING_INTERVAL {
                warned_at = Instant::now();
                self.gateway.certificates.log_warnings();
            }
            tokio::select! {
                _ = hangup.recv() => {
                    // The result is always logged, even one that was logged before.
                    state.failure = None;
                    state = self.reload(Some(&state));
                }
                () = tokio::time::sleep(POLL_INTERVAL) => {
                    observed.update(self.file_versions());
                    if self.is_due(&state, &observed)
                        && let Some(reloaded) = self.reload_if_unchanged(&state)
                    {
                        state = reloaded;
                    }
                }
                _ = shutdown.changed() => return,
            }
        }
    }

    fn file_versions(&self) -> Vec<FileVersion> {
        self.source.file_versions(&self.gateway.current().config)
    }

    fn is_due(&self, state: &ReloadState, observed: &Observation) -> bool {
        let retry_is_due = |failure: &ReloadFailure| failure.at.elapsed() >= RETRY_INTERVAL;
        let has_cause =
            observed.versions != state.versions || state.failure.as_ref().is_some_and(retry_is_due);
        has_cause && observed.since.elapsed() >= self.settling_time()
    }

    /// Returns the time for which the files have to stay unchanged before they are read.
    fn settling_time(&self) -> Duration {
        if ends_with_line_break(&self.source.file).unwrap_or(true) {
            SETTLING_TIME
        } else {
            INCOMPLETE_LINE_SETTLING_TIME
        }
    }

    /// Reads the configuration on disk and activates it if it is valid.
    fn reload(&self, before: Option<&ReloadState>) -> ReloadState {
        self.apply(before, self.read())
    }

    fn apply(&self, before: Option<&ReloadState>, mut reading: Reading) -> ReloadState {
        loop {
            let names = |all: &[FileVersion]| -> Vec<PathBuf> {
                all.iter().map(|one| one.file.clone()).collect()
            };
            let versions = reading.versions;
            let activation = || self.try_to_activate(before, reading.config);
            let failure = self
                .supervisor
                .catch_blocking(TASK, activation)
                .unwrap_or_else(|panicked| Some(self.unusable(before, &panicked.to_string())));
            // Files that the new configuration names have no version from before they were read.
            if failure.is_some() || names(&versions) == names(&self.file_versions()) {
                return ReloadState { versions, failure };
            }
            reading = self.read();
            if let Ok(Ok(config)) = &reading.config
                && *config == self.gateway.current().config
            {
                let versions = reading.versions;
                return ReloadState { versions, failure };
            }
        }
    }

    /// As [`Self::reload`], but returns `None` and changes nothing if the files change while they are read.
    fn reload_if_unchanged(&self, before: &ReloadState) -> Option<ReloadState> {
        let reading = self.read();
        (self.file_versions() == reading.versions).then(|| self.apply(Some(before), reading))
    }

    fn read(&self) -> Reading {
        let versions = self.file_versions();
        let load = || Config::load(&self.source.file, &self.source.environment);
        let config = self.supervisor.catch_blocking(TASK, load);
        Reading { versions, config }
    }

    /// Activates the configuration on disk, or returns the reason why it cannot be used. The reason is
    /// logged unless it was the reason before.
    fn try_to_activate(
        &self,
        before: Option<&ReloadState>,
        loaded: Result<Result<Config, ConfigErrors>, Panicked>,
    ) -> Option<ReloadFailure> {
        let config = match loaded {
            Ok(Ok(config)) => config,
            Err(panicked) => return Some(self.unusable(before, &panicked.to_string())),
            Ok(Err(errors)) => {
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
        self.fixed.warn_if_changed(&config);
        if let Err(error) = self.gateway.activate(config) {
            return Some(self.unusable(before, &format!("{error:#}")));
        }
        let hash = &self.gateway.current().config.hash;
        tracing::info!(hash, "configuration reloaded");
        None
    }

    /// Records that a configuration cannot be used although it has no error.
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

/// Returns whether the last byte of a file is a line break. An empty file ends with none.
///
/// # Errors
/// Returns an error if the file cannot be read.
fn ends_with_line_break(file: &Path) -> io::Result<bool> {
    let mut file = File::open(file)?;
    let mut last = [0];
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    Ok(last == *b"\n")
}

/// Logs the warnings of a configuration.
pub(crate) fn log_warnings(config: &Config) {
    fd_limit::warn_if_exceeded(config.limits.max_connections);
    for warning in &config.warnings {
        tracing::warn!(warning, "configuration may not have the intended effect");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use logging::AccessLog;

    /// Returns a reload task of a running gateway whose file is `file`.
    fn reload(file: PathBuf) -> Reload {
        let environment = Environment::for_tests();
        let config = Config::parse(&file, "premier: {}", &environment).unwrap();
        Reload {
            fixed: FixedSettings::of(&config),
            gateway: Arc::new(GatewayState::new(config, AccessLog::disabled()).unwrap()),
            source: ConfigSource { file, environment },
            supervisor: Supervisor::new(),
        }
    }

    fn metrics(reload: &Reload) -> String {
        let (text, _) = reload.gateway.metrics.encode();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_panic_while_the_file_is_parsed_is_a_failed_reload() {
        let reload = reload("gateway.yml".into());
        let parse = || -> Result<Config, ConfigErrors> { panic!("while parsing") };
        let reading = Reading {
            versions: Vec::new(),
            config: reload.supervisor.catch_blocking(TASK, parse),
        };
        let state = reload.apply(None, reading);
        assert!(state.failure.is_some());
        assert_eq!(reload.supervisor.restarts(TASK), 1);
        let text = metrics(&reload);
        let failures = r#"gateway_reloads_total{outcome="failure",keyspace="asgi-gateway"} 1"#;
        assert!(text.contains(failures), "{text}");
        assert!(text.contains(r#"gateway_last_reload_success{keyspace="asgi-gateway"} 0"#));
    }

    #[test]
    fn a_reload_that_names_other_certificates_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gateway.yml");
        let reload = reload(file.clone());
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/fixtures");
        for name in ["cert.pem", "key.pem"] {
            fs::copy(format!("{fixtures}/{name}"), folder.path().join(name)).unwrap();
        }
        let path = folder.path().display();
        let yaml = format!(
            "premier: {{tls: {{certificates: [{{cert: {path}/cert.pem, key: {path}/key.pem}}]}}}}"
        );
        fs::write(file, yaml).unwrap();
        assert!(reload.reload(None).failure.is_none());
        let text = metrics(&reload);
        let successes = r#"gateway_reloads_total{outcome="success",keyspace="asgi-gateway"} 1"#;
        assert!(text.contains(successes), "{text}");
    }
}
