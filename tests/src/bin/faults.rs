//! Breaks stores under load and prints what people were told: `scripts/bench faults`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;
use tests::client::Client;
use tests::load::Load;
use tests::postgres;
use tests::process::signal_family;
use tests::replica::{self, Replicas};
use tests::slow::SlowWay;
use tests::{Store, wait};

const PEOPLE: usize = 16;
const PAUSE: Duration = Duration::from_millis(5);
/// How long a fault lasts.
const FAULT: Duration = Duration::from_secs(5);
/// How long people are at it before and after a fault.
const CALM: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
enum Fault {
    RedisStopped,
    RedisSilent,
    RedisSlow(Duration),
    PostgresStopped,
    PostgresSilent,
    PostgresSlow(Duration),
}

/// Replicas, and every way to break their stores.
struct Stage {
    replicas: Replicas,
    redis: tests::redis::Server,
    postgres: postgres::Server,
    to_redis: SlowWay,
    to_postgres: SlowWay,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the table is what it is for")]
async fn main() -> Result<()> {
    let mut stage = Stage::set().await?;
    println!(
        "| fault, {FAULT:?} | requests | answers by status | wrong | lost accounts | slowest | back after | files open, before and after |"
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
        println!("{}", stage.suffer(fault).await?);
    }
    Ok(())
}

impl Stage {
    async fn set() -> Result<Self> {
        let postgres = postgres::Server::start()?;
        let database = postgres.database().await?;
        let redis = tests::redis::Server::start()?;
        let to_redis = SlowWay::to(redis.address).await?;
        let to_postgres = SlowWay::to(postgres.address).await?;
        let settings = [
            replica::database(to_postgres.address, &database.name),
            replica::redis(to_redis.address),
            replica::settings([("LOG_LEVEL", "WARNING".to_owned())]),
        ]
        .concat();
        Ok(Self {
            // Stores of our own, named by the settings.
            replicas: Replicas::start_with(Store::Embedded, 2, settings).await?,
            redis,
            postgres,
            to_redis,
            to_postgres,
        })
    }

    async fn suffer(&mut self, fault: Fault) -> Result<String> {
        let clients: Result<Vec<_>> = (0..PEOPLE)
            .map(|number| self.replicas.client(number % 2))
            .collect();
        let files_before = self.open_files();
        let load = Load::start(clients?, PAUSE);
        tokio::time::sleep(CALM).await;
        self.begin(fault)?;
        tokio::time::sleep(FAULT).await;
        self.end(fault)?;
        let end = Instant::now();
        let back = Self::back(&self.replicas.client(0)?, end).await?;
        tokio::time::sleep(CALM).await;
        let tally = load.end().await;
        let lost = tally.lost(&self.replicas.client(1)?).await?;
        Ok(format!(
            "| {fault:?} | {} | {} | {} | {lost} | {:.2?} | {back:.2?} | {files_before}, {} |",
            tally.requests,
            tally.statuses(),
            tally.wrong.len(),
            tally.slowest,
            self.open_files(),
        ) + &tally
            .wrong
            .first()
            .map_or_else(String::new, |wrong| format!(" {wrong}")))
    }

    fn begin(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::RedisStopped => self.redis.stop(),
            Fault::RedisSilent => self
                .redis
                .process()
                .context("it runs")?
                .signal(Signal::STOP)?,
            Fault::PostgresStopped => self.postgres.stop()?,
            Fault::PostgresSilent => {
                signal_family(
                    self.postgres.process().context("it runs")?.id(),
                    Signal::STOP,
                )?;
            }
            Fault::RedisSlow(delay) => self.to_redis.delay(delay),
            Fault::PostgresSlow(delay) => self.to_postgres.delay(delay),
        }
        Ok(())
    }

    fn end(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::RedisStopped => self.redis.resume(),
            Fault::RedisSilent => self
                .redis
                .process()
                .context("it runs")?
                .signal(Signal::CONT),
            Fault::PostgresStopped => self.postgres.resume(),
            Fault::PostgresSilent => signal_family(
                self.postgres.process().context("it runs")?.id(),
                Signal::CONT,
            ),
            Fault::RedisSlow(_) => {
                self.to_redis.delay(Duration::ZERO);
                Ok(())
            }
            Fault::PostgresSlow(_) => {
                self.to_postgres.delay(Duration::ZERO);
                Ok(())
            }
        }
    }

    /// From `since` until somebody can register and log in again.
    async fn back(client: &Client, since: Instant) -> Result<Duration> {
        let name = format!("back {since:?}");
        wait::until("both stores to be used again", async || {
            let _ = client.register(&name).await;
            client
                .login(&name)
                .await
                .is_ok_and(|answer| answer.status == 200)
        })
        .await?;
        Ok(since.elapsed())
    }

    fn open_files(&self) -> usize {
        let count = |id| std::fs::read_dir(format!("/proc/{id}/fd")).map_or(0, Iterator::count);
        self.replicas
            .all
            .iter()
            .map(|replica| count(replica.process.id()))
            .sum()
    }
}
