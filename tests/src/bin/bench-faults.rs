//! Injects faults into the stores under load and prints what clients observed, as a table:
//! `scripts/bench faults`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;
use tests::client::Client;
use tests::fault_proxy::FaultProxy;
use tests::load::Load;
use tests::postgres::PostgresServer;
use tests::process::signal_with_children;
use tests::redis::RedisServer;
use tests::replicas::Replicas;
use tests::settings::{postgres_settings, redis_settings, settings};
use tests::{Store, wait};

const REPLICAS: usize = 2;
const USERS: usize = 16;
/// Pause of a user before each request.
const REQUEST_PAUSE: Duration = Duration::from_millis(5);
const FAULT_DURATION: Duration = Duration::from_secs(5);
/// Duration of the load without a fault, before and after it.
const FAULT_FREE_DURATION: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
enum Fault {
    RedisStopped,
    RedisSilent,
    RedisSlow(Duration),
    PostgresStopped,
    PostgresSilent,
    PostgresSlow(Duration),
}

/// Replicas of auth-api whose stores can be made to fail.
struct FaultBench {
    replicas: Replicas,
    redis: RedisServer,
    postgres: PostgresServer,
    redis_proxy: FaultProxy,
    postgres_proxy: FaultProxy,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the table is the program's output")]
async fn main() -> Result<()> {
    let mut bench = FaultBench::start().await?;
    println!(
        "| fault, {FAULT_DURATION:?} | requests | responses by status | contradictions | lost accounts | slowest | recovered after | open files, before and after |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for fault in [
        Fault::RedisStopped,
        Fault::RedisSilent,
        Fault::RedisSlow(Duration::from_millis(100)),
        Fault::RedisSlow(Duration::from_secs(4)),
        Fault::PostgresStopped,
        Fault::PostgresSilent,
        Fault::PostgresSlow(Duration::from_millis(100)),
        Fault::PostgresSlow(Duration::from_secs(4)),
    ] {
        println!("{}", bench.run(fault).await?);
    }
    Ok(())
}

impl FaultBench {
    async fn start() -> Result<Self> {
        let postgres = PostgresServer::start()?;
        let database = postgres.create_database().await?;
        let redis = RedisServer::start()?;
        let redis_proxy = FaultProxy::start(redis.address).await?;
        let postgres_proxy = FaultProxy::start(postgres.address).await?;
        let settings = [
            postgres_settings(postgres_proxy.address, &database.name),
            redis_settings(redis_proxy.address),
            settings([("LOG_LEVEL", "WARNING".to_owned())]),
        ]
        .concat();
        Ok(Self {
            // The harness starts no stores; the settings name ours.
            replicas: Replicas::start_with(Store::Embedded, REPLICAS, settings).await?,
            redis,
            postgres,
            redis_proxy,
            postgres_proxy,
        })
    }

    /// Injects a fault under load and returns a row of the table.
    async fn run(&mut self, fault: Fault) -> Result<String> {
        let clients: Result<Vec<_>> = (0..USERS)
            .map(|number| self.replicas.client(number % REPLICAS))
            .collect();
        let open_files_before = self.open_files();
        let load = Load::start(clients?, REQUEST_PAUSE);
        tokio::time::sleep(FAULT_FREE_DURATION).await;
        self.inject(fault)?;
        tokio::time::sleep(FAULT_DURATION).await;
        self.remove(fault)?;
        let removed_at = Instant::now();
        let recovery = time_until_recovered(&self.replicas.client(0)?, removed_at).await?;
        tokio::time::sleep(FAULT_FREE_DURATION).await;
        let report = load.finish().await;
        let lost_accounts = report
            .count_lost_accounts(&self.replicas.client(1)?)
            .await?;
        let first_contradiction = report
            .contradictions
            .first()
            .map_or_else(String::new, |contradiction| format!(" {contradiction}"));
        Ok(format!(
            "| {fault:?} | {} | {} | {} | {lost_accounts} | {:.2?} | {recovery:.2?} | {open_files_before}, {} |{first_contradiction}",
            report.requests,
            report.status_summary(),
            report.contradictions.len(),
            report.slowest,
            self.open_files(),
        ))
    }

    fn inject(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::RedisStopped => self.redis.kill(),
            Fault::RedisSilent => self.signal_redis(Signal::STOP)?,
            Fault::RedisSlow(delay) => self.redis_proxy.set_delay(delay),
            Fault::PostgresStopped => self.postgres.stop_immediately()?,
            Fault::PostgresSilent => self.signal_postgres(Signal::STOP)?,
            Fault::PostgresSlow(delay) => self.postgres_proxy.set_delay(delay),
        }
        Ok(())
    }

    fn remove(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::RedisStopped => self.redis.start_again()?,
            Fault::RedisSilent => self.signal_redis(Signal::CONT)?,
            Fault::RedisSlow(_) => self.redis_proxy.set_delay(Duration::ZERO),
            Fault::PostgresStopped => self.postgres.start_again()?,
            Fault::PostgresSilent => self.signal_postgres(Signal::CONT)?,
            Fault::PostgresSlow(_) => self.postgres_proxy.set_delay(Duration::ZERO),
        }
        Ok(())
    }

    fn signal_redis(&self, signal: Signal) -> Result<()> {
        let process = self.redis.process().context("Redis does not run")?;
        process.signal(signal)
    }

    fn signal_postgres(&self, signal: Signal) -> Result<()> {
        let process = self.postgres.process().context("PostgreSQL does not run")?;
        signal_with_children(process.id(), signal)
    }

    /// Returns the number of open files of all replicas.
    fn open_files(&self) -> usize {
        let count = |id| std::fs::read_dir(format!("/proc/{id}/fd")).map_or(0, Iterator::count);
        self.replicas
            .instances
            .iter()
            .map(|replica| count(replica.process.id()))
            .sum()
    }
}

/// Waits until a user can register and log in, and returns the time since `since`.
async fn time_until_recovered(client: &Client, since: Instant) -> Result<Duration> {
    let login = format!("recovery {since:?}");
    wait::until("both stores to be used again", async || {
        let _ = client.register(&login).await;
        client
            .login(&login)
            .await
            .is_ok_and(|response| response.status == 200)
    })
    .await?;
    Ok(since.elapsed())
}
