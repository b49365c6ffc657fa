//! A changed configuration takes effect without a restart: on SIGHUP, and when the file, a
//! certificate or a key changes. A bad one changes nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, Environment, Listen};
use crate::gateway::Gateway;
use crate::open_files;

/// Between two looks at the files. A look costs a system call a file, and sees what no watch of
/// the kernel does: a network file system, a mounted secret that is swapped by its folder.
const PAUSE: Duration = Duration::from_millis(500);

/// Reads the configuration again whenever there is reason to.
#[derive(Debug)]
pub(crate) struct Reload {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) file: PathBuf,
    pub(crate) environment: Environment,
}

#[async_trait]
impl BackgroundService for Reload {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => {
                tracing::error!(%error, "SIGHUP cannot be watched: changes need a restart");
                return;
            }
        };
        let mut seen = self.look();
        loop {
            tokio::select! {
                _ = hangup.recv() => {}
                () = tokio::time::sleep(PAUSE) => {
                    if self.look() == seen {
                        continue;
                    }
                    self.settle().await;
                }
                _ = shutdown.changed() => return,
            }
            self.reload();
            // The configuration may name other files now.
            seen = self.look();
        }
    }
}

/// A file as it was when it was looked at.
type Look = (PathBuf, Option<(SystemTime, u64)>);

impl Reload {
    /// The state of every file that the configuration is made of.
    fn look(&self) -> Vec<Look> {
        let live = self.gateway.glance();
        let certificates = live
            .config
            .certificates
            .iter()
            .flat_map(|certificate| [&certificate.files.cert, &certificate.files.key]);
        std::iter::once(&self.file)
            .chain(certificates)
            .map(|file| (file.clone(), state_of(file)))
            .collect()
    }

    /// Waits until whoever writes the files has finished: a certificate and its key change one
    /// after the other.
    async fn settle(&self) {
        const QUIET: Duration = Duration::from_millis(50);
        loop {
            let before = self.look();
            tokio::time::sleep(QUIET).await;
            if self.look() == before {
                return;
            }
        }
    }

    fn reload(&self) {
        let config = match Config::load(&self.file, &self.environment) {
            Ok(config) => config,
            Err(mistakes) => {
                self.gateway.metrics.reload_failed();
                let count = mistakes.count();
                tracing::error!(count, mistakes = %mistakes, "configuration has mistakes: the one before stays in effect");
                return;
            }
        };
        warn_of(&config);
        warn_of_fixed(self.gateway.glance().config.listen, config.listen);
        match self.gateway.replace(config) {
            Ok(()) => {
                let hash = &self.gateway.glance().config.hash;
                tracing::info!(hash, "configuration reloaded");
            }
            Err(error) => {
                self.gateway.metrics.reload_failed();
                tracing::error!(error = %format!("{error:#}"), "configuration cannot be used: the one before stays in effect");
            }
        }
    }
}

fn state_of(file: &Path) -> Option<(SystemTime, u64)> {
    let found = fs::metadata(file).ok()?;
    Some((found.modified().ok()?, found.len()))
}

/// Says what a configuration asks for in vain.
pub(crate) fn warn_of(config: &Config) {
    open_files::warn_of(config.limits.max_connections);
    for warning in &config.warnings {
        tracing::warn!(setting = warning, "setting has no effect");
    }
}

fn warn_of_fixed(now: Listen, asked: Listen) {
    if now != asked {
        tracing::warn!(
            "premier.listen has changed: the gateway listens where it did until it is restarted"
        );
    }
}
