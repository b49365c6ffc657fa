//! A changed configuration takes effect without a restart: on SIGHUP, and when the file, a
//! certificate or a key changes. A bad one changes nothing, and is tried again now and then: what
//! it lacks may come later, a mounted secret for one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, Environment};
use crate::gateway::Gateway;
use crate::open_files;

/// Between two looks at the files. A look costs a system call a file, and sees what no watch of
/// the kernel does: a network file system, a mounted secret that is swapped by its folder.
const PAUSE: Duration = Duration::from_millis(500);
/// Between two tries of what could not be used.
const RETRY: Duration = Duration::from_secs(5);
/// Between two warnings of a certificate that ends soon.
const REMINDER: Duration = Duration::from_hours(1);

/// Where the configuration comes from.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) file: PathBuf,
    pub(crate) environment: Environment,
}

impl Source {
    /// Every file that a configuration from here is made of, as it is now.
    pub(crate) fn look(&self, config: &Config) -> Vec<Look> {
        let certificates = config
            .certificates
            .iter()
            .flat_map(|certificate| [&certificate.files.cert, &certificate.files.key]);
        std::iter::once(&self.file)
            .chain(certificates)
            .map(|file| Look::at(file))
            .collect()
    }
}

/// A file as it was when it was looked at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Look {
    file: PathBuf,
    state: Option<State>,
}

/// What no change of a file's content leaves as it was: a new file has another number, and only the
/// kernel sets the time of its last change.
#[derive(Debug, PartialEq, Eq)]
struct State {
    device: u64,
    number: u64,
    changed: (i64, i64),
}

impl Look {
    fn at(file: &Path) -> Self {
        let found = fs::metadata(file).ok();
        let state = |found: fs::Metadata| State {
            device: found.dev(),
            number: found.ino(),
            changed: (found.ctime(), found.ctime_nsec()),
        };
        Self {
            file: file.to_owned(),
            state: found.map(state),
        }
    }
}

/// Reads the configuration again whenever there is reason to.
#[derive(Debug)]
pub(crate) struct Reload {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) source: Source,
}

/// How the configuration on disk stands to the one that runs.
struct Standing {
    /// The files as they were before they were read.
    seen: Vec<Look>,
    trouble: Option<Trouble>,
}

/// Why what is on disk could not be used.
struct Trouble {
    why: String,
    since: Instant,
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
        // Something may have changed since the start, unseen.
        let mut standing = self.read(None);
        let mut reminded = Instant::now();
        loop {
            if reminded.elapsed() >= REMINDER {
                reminded = Instant::now();
                self.gateway.certificates.warn();
            }
            tokio::select! {
                // Who asks is answered, whatever was told before.
                _ = hangup.recv() => standing.trouble = None,
                () = tokio::time::sleep(PAUSE) => {
                    if !self.is_due(&standing) {
                        continue;
                    }
                    self.settle().await;
                }
                _ = shutdown.changed() => return,
            }
            standing = self.read(Some(&standing));
        }
    }
}

impl Reload {
    fn look(&self) -> Vec<Look> {
        self.source.look(&self.gateway.glance().config)
    }

    fn is_due(&self, standing: &Standing) -> bool {
        let retries = |trouble: &Trouble| trouble.since.elapsed() >= RETRY;
        standing.trouble.as_ref().is_some_and(retries) || self.look() != standing.seen
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

    /// Reads what is on disk and puts it into effect, if it can be used.
    fn read(&self, before: Option<&Standing>) -> Standing {
        loop {
            let seen = self.look();
            let trouble = self.try_to_use(before);
            let names_others = || {
                let now = self.look();
                let files = |looks: &[Look]| looks.iter().map(|look| look.file.clone()).collect();
                let (before, now): (Vec<_>, Vec<_>) = (files(&seen), files(&now));
                before != now
            };
            // Files that are named for the first time were not looked at before they were read.
            if trouble.is_some() || !names_others() {
                return Standing { seen, trouble };
            }
        }
    }

    /// What is in the way of using what is on disk. It is told, unless it was before.
    fn try_to_use(&self, before: Option<&Standing>) -> Option<Trouble> {
        let config = match Config::load(&self.source.file, &self.source.environment) {
            Ok(config) => config,
            Err(mistakes) => {
                let count = mistakes.count();
                return Some(self.trouble(before, mistakes.to_string(), |why| {
                    tracing::error!(count, mistakes = %why, "configuration has mistakes: the one before stays in effect");
                }));
            }
        };
        let live = self.gateway.live();
        if before.is_none() && config == live.config {
            return None;
        }
        warn_of(&config);
        warn_of_fixed(&live.config, &config);
        if let Err(error) = self.gateway.replace(config) {
            return Some(self.trouble(before, format!("{error:#}"), |error| {
                tracing::error!(%error, "configuration cannot be used: the one before stays in effect");
            }));
        }
        let hash = &self.gateway.glance().config.hash;
        tracing::info!(hash, "configuration reloaded");
        None
    }

    fn trouble(&self, before: Option<&Standing>, why: String, tell: impl Fn(&str)) -> Trouble {
        let known = before.and_then(|standing| standing.trouble.as_ref());
        if known.is_none_or(|trouble| trouble.why != why) {
            self.gateway.metrics.reload_failed();
            tell(&why);
        }
        let since = Instant::now();
        Trouble { why, since }
    }
}

/// Says what a configuration may not do as it was meant.
pub(crate) fn warn_of(config: &Config) {
    open_files::warn_of(config.limits.max_connections);
    for warning in &config.warnings {
        tracing::warn!(warning, "configuration may not do what was meant");
    }
}

/// Says what has changed in vain.
fn warn_of_fixed(now: &Config, asked: &Config) {
    for (key, is_same) in [
        ("premier.listen", now.listen == asked.listen),
        ("premier.keyspace", now.keyspace == asked.keyspace),
    ] {
        if !is_same {
            tracing::warn!(
                key,
                "setting has changed: it stays as it was until a restart"
            );
        }
    }
}
