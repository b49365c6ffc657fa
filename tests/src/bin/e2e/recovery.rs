//! Faults after which the deployment has to serve again without an operator, except for their cause.

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Signal, kill_process};

use crate::deployment::{Deployment, Service};
use crate::small_disk::{Filler, Store};
use crate::wait::until;

/// Times that each container is killed.
const KILLS: usize = 5;
/// Longest time for which auth-api waits for PostgreSQL until it exits, with some more.
const START_TIMEOUT: Duration = Duration::from_secs(90);

/// Template of `docker inspect`.
const STARTED_AT: &str = "{{.State.StartedAt}}";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Crashes,
    Terminations,
    DaemonRestart,
    PostgresAway,
    RedisDiskFull,
    PostgresDiskFull,
}

impl Fault {
    pub(crate) const ALL: [Self; 6] = [
        Self::Crashes,
        Self::Terminations,
        Self::DaemonRestart,
        Self::PostgresAway,
        Self::RedisDiskFull,
        Self::PostgresDiskFull,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Crashes => "each container is killed five times",
            Self::Terminations => "each container gets SIGTERM",
            Self::DaemonRestart => "the Docker daemon restarts, as after a reboot",
            Self::PostgresAway => "PostgreSQL is away for longer than auth-api waits at start",
            Self::RedisDiskFull => "the disk of Redis is full, then has space again",
            Self::PostgresDiskFull => "the disk of PostgreSQL is full, then has space again",
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
            Self::PostgresDiskFull => fill_postgres_disk(deployment),
        }
    }
}

/// Sends a signal to the main process of each container, and waits until Docker has started them all again: after
/// SIGTERM they finish their requests first.
fn signal_all(deployment: &Deployment, signal: Signal) -> Result<()> {
    let docker = deployment.docker();
    let mut signalled = Vec::new();
    for service in Service::ALL {
        for container in deployment.containers(service)? {
            let process = deployment.main_process(&container)?;
            let started = docker.inspect(&container, STARTED_AT)?;
            kill_process(process, signal)?;
            signalled.push((container, started));
        }
    }
    for (container, started) in signalled {
        until("a container to be started again", START_TIMEOUT, || {
            Ok(docker.inspect(&container, STARTED_AT)? != started)
        })?;
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
    let before = restarts(deployment, Service::Redis)?;
    let filler = Filler::fill(&deployment.disk(Store::Redis))?;
    until("Redis to exit", START_TIMEOUT, || {
        Ok(restarts(deployment, Service::Redis)? != before)
    })?;
    drop(filler);
    Ok(())
}

/// Fills the disk of PostgreSQL until it has exited, since it cannot write its WAL, and makes space again.
fn fill_postgres_disk(deployment: &Deployment) -> Result<()> {
    let docker = deployment.docker();
    let containers = deployment.containers(Service::Postgres)?;
    let postgres = containers.first().context("postgres has no container")?;
    let before = restarts(deployment, Service::Postgres)?;
    let filler = Filler::fill(&deployment.disk(Store::Postgres))?;
    // Segments of the WAL that are there already can still be written.
    let next_segment = [
        "exec",
        postgres,
        "psql",
        "--username=postgres",
        "--dbname=auth",
    ];
    let next_segment = [
        &next_segment[..],
        &["--command=SELECT txid_current(), pg_switch_wal()"],
    ]
    .concat();
    until("PostgreSQL to exit", START_TIMEOUT, || {
        let _ = docker.output(&next_segment);
        Ok(restarts(deployment, Service::Postgres)? != before)
    })?;
    drop(filler);
    // Step 4 of docs/runbooks/disk-full.md.
    deployment.compose(&["up", "-d", "--no-recreate"])
}

/// Returns a text that changes when the container of a service exits or is restarted.
fn restarts(deployment: &Deployment, service: Service) -> Result<String> {
    let containers = deployment.containers(service)?;
    let container = containers.first().context("the service has no container")?;
    let docker = deployment.docker();
    docker.inspect(container, "{{.RestartCount}} {{.State.Status}}")
}
