//! Faults after which the deployment has to serve again without an operator, except for their cause.

use std::fs::{self, File};
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::deployment::{Deployment, Service};
use crate::wait::until;

/// Times that each container is killed.
const KILLS: usize = 5;
/// Longest time for which auth-api waits for PostgreSQL until it exits, with some more.
const START_TIMEOUT: Duration = Duration::from_secs(90);

const BLOCK_SIZE: usize = 4096;
/// More than the disk of Redis has.
const MAX_FILLER: usize = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Crashes,
    Terminations,
    DaemonRestart,
    PostgresAway,
    RedisDiskFull,
}

impl Fault {
    pub(crate) const ALL: [Self; 5] = [
        Self::Crashes,
        Self::Terminations,
        Self::DaemonRestart,
        Self::PostgresAway,
        Self::RedisDiskFull,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Crashes => "each container is killed five times",
            Self::Terminations => "each container gets SIGTERM",
            Self::DaemonRestart => "the Docker daemon restarts, as after a reboot",
            Self::PostgresAway => "PostgreSQL is away for longer than auth-api waits at start",
            Self::RedisDiskFull => "the disk of Redis is full, then has space again",
        }
    }

    /// Causes the fault, and removes its cause if Docker cannot.
    pub(crate) fn cause(self, deployment: &mut Deployment) -> Result<()> {
        match self {
            Self::Crashes => {
                for _ in 0..KILLS {
                    signal_all(deployment, Signal::KILL)?;
                }
                Ok(())
            }
            Self::Terminations => signal_all(deployment, Signal::TERM),
            Self::DaemonRestart => deployment.engine.restart(),
            Self::PostgresAway => postgres_away(deployment),
            Self::RedisDiskFull => fill_redis_disk(deployment),
        }
    }
}

fn signal_all(deployment: &Deployment, signal: Signal) -> Result<()> {
    for service in Service::ALL {
        for container in deployment.containers(service)? {
            deployment.signal(&container, signal)?;
        }
    }
    Ok(())
}

/// Keeps PostgreSQL stopped until a replica that starts meanwhile has given up on it.
fn postgres_away(deployment: &Deployment) -> Result<()> {
    deployment.compose(&["stop", "postgres"])?;
    let docker = deployment.docker();
    let replicas = deployment.containers(Service::AuthApi)?;
    let restarts = |replica: &str| docker.inspect(replica, "{{.RestartCount}} {{.State.Status}}");
    for replica in &replicas {
        deployment.signal(replica, Signal::KILL)?;
    }
    for replica in &replicas {
        // The start after the kill, and one after the exit of that start.
        let first = restarts(replica)?;
        until("a replica to give up", START_TIMEOUT, || {
            Ok(restarts(replica)? != first)
        })?;
    }
    deployment.compose(&["start", "postgres"])
}

/// Fills the disk of Redis, which syncs every write before it is acknowledged, until Redis has exited, and
/// makes space again.
fn fill_redis_disk(deployment: &Deployment) -> Result<()> {
    let docker = deployment.docker();
    let redis = deployment.containers(Service::Redis)?;
    let redis = redis.first().context("redis has no container")?;
    let state = || docker.inspect(redis, "{{.RestartCount}} {{.State.Status}}");
    let before = state()?;
    let filler = deployment.redis_disk().join("filler");
    let mut file = File::create(&filler)?;
    let block = [0; BLOCK_SIZE];
    let mut written = 0;
    while file.write_all(&block).is_ok() {
        written += BLOCK_SIZE;
        // The disk of the machine must never be what is filled.
        ensure!(written < MAX_FILLER, "the disk of Redis is not small");
    }
    until("Redis to exit", START_TIMEOUT, || Ok(state()? != before))?;
    drop(file);
    Ok(fs::remove_file(&filler)?)
}
