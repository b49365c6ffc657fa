//! Faults in the whole deployment on real processes, and a check of what its clients observed, as Jepsen does it:
//! `make chaos`. `scripts/chaos` starts this program in namespaces of its own.
//!
//! Each program runs alone on a host (a network namespace). Clients record the begin and the end of every request. A
//! nemesis causes faults. At the end checkers look for a response in the history that contradicts a promise:
//! accounts and passwords are linearizable, no token is accepted after the acknowledged end of its session, no session
//! is lost, no quota is exceeded, every response is in time. What a failover of Redis may lose is what
//! `docs/operations.md` says.

mod account;
mod checker;
mod client;
mod deployment;
mod history;
mod nemesis;
mod network;
mod node;
mod random;
mod redis_status;
mod report;
mod run;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use crate::deployment::Deployment;
use crate::nemesis::{FaultKind, Nemesis};
use crate::random::Random;
use crate::run::{Run, Verdict};

/// Accounts in use at the same time.
const ACCOUNTS: usize = 6;
/// Clients of each quota.
const CLIENTS_PER_QUOTA: usize = 2;
/// Clients that verify the passwords of all accounts at the end.
const VERIFIERS: usize = 8;
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// Longest time until the deployment is healthy at the end.
const RECOVERY_TIMEOUT: Duration = Duration::from_mins(2);
/// Violations that are printed.
const PRINTED_VIOLATIONS: usize = 20;

/// What to do, from the environment.
struct Options {
    duration: Duration,
    seed: u64,
    kinds: Vec<FaultKind>,
}

impl Options {
    fn read() -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let seconds = variable("SECONDS_TOTAL").map_or(Ok(120), |value| value.parse());
        let seed = match variable("SEED") {
            Some(seed) => seed.parse().context("SEED is no number")?,
            None => u64::from(std::process::id()) ^ now_in_seconds(),
        };
        let kinds = match variable("FAULTS") {
            None => FaultKind::ALL.to_vec(),
            Some(names) => names
                .split([' ', ','])
                .filter(|name| !name.is_empty())
                .map(|name| {
                    let kind = FaultKind::ALL.into_iter().find(|kind| kind.name() == name);
                    let names: Vec<_> = FaultKind::ALL.into_iter().map(FaultKind::name).collect();
                    kind.with_context(|| format!("FAULTS: `{name}` is none of {names:?}"))
                })
                .collect::<Result<_>>()?,
        };
        Ok(Self {
            duration: Duration::from_secs(seconds.context("SECONDS is no number")?),
            seed,
            kinds,
        })
    }
}

fn now_in_seconds() -> u64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[tokio::main]
#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "progress and results of a command-line program"
)]
async fn main() -> Result<ExitCode> {
    let options = Options::read()?;
    let folder = std::env::args_os().nth(1);
    let folder = PathBuf::from(folder.context("run this test by `make chaos`")?);
    let folder = folder.join(format!("seed-{}", options.seed));
    let logs = folder.join("logs");
    fs::create_dir_all(&logs)?;
    eprintln!(
        "chaos: seed {}, {:?}, into {}",
        options.seed,
        options.duration,
        folder.display()
    );
    let deployment = Deployment::start(&logs).await?;
    let run = Arc::new(Run::new(deployment, options.seed, folder));
    let verdict = carry_out(&run, &options).await?;
    println!("{}", report::table(&verdict, &run.faults()));
    println!(
        "seed {}: {} operations on {} accounts, {} failovers of Redis lost {} sessions and logouts as documented, timers of the clients were up to {:?} late",
        options.seed,
        verdict.operations.len(),
        run.accounts().len(),
        verdict.failovers,
        verdict.lost_in_failovers,
        run.latest_timer(),
    );
    if verdict.violations.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for violation in verdict.violations.iter().take(PRINTED_VIOLATIONS) {
        println!("{:10.4} s: {}", violation.at.as_secs_f64(), violation.text);
    }
    println!(
        "{} violations; histories and logs are in {}",
        verdict.violations.len(),
        run.folder().display()
    );
    Ok(ExitCode::FAILURE)
}

/// Runs clients and nemesis for the duration, verifies all accounts, and checks the history.
#[expect(clippy::print_stderr, reason = "progress of a command-line program")]
async fn carry_out(run: &Arc<Run>, options: &Options) -> Result<Verdict> {
    let mut random = Random::new(options.seed);
    let mut observers = JoinSet::new();
    for observer in 0..3 {
        let run = Arc::clone(run);
        observers.spawn(async move {
            match observer {
                0 => run.deployment.supervise().await,
                1 => run.observe_redis().await,
                _ => run.observe_timers().await,
            }
        });
    }
    let nemesis = Nemesis::new(Arc::clone(run), random.split(), options.kinds.clone());
    let mut clients = JoinSet::new();
    for slot in 0..ACCOUNTS {
        clients.spawn(client::use_accounts(Arc::clone(run), random.split(), slot));
    }
    for quota in 0..Run::QUOTA_COUNT {
        for number in 0..CLIENTS_PER_QUOTA {
            let run = Arc::clone(run);
            clients.spawn(client::use_quota(run, random.split(), quota, number));
        }
    }
    let nemesis = tokio::spawn(nemesis.torment());
    let start = Instant::now();
    while start.elapsed() < options.duration {
        let rest = options.duration.saturating_sub(start.elapsed());
        tokio::time::sleep(rest.min(PROGRESS_INTERVAL)).await;
        let faults = run.faults();
        let last = faults.last().map_or("", |fault| &fault.description);
        eprintln!(
            "chaos: {:4} s: {} operations, {} faults, last {last}, {} violations",
            run.now().as_secs(),
            run.operation_count(),
            faults.len(),
            run.violations_so_far(),
        );
    }
    run.end();
    nemesis.await?;
    clients.join_all().await;
    if let Err(error) = run.deployment.wait_until_healthy(RECOVERY_TIMEOUT).await {
        run.record_violation(format!(
            "the deployment does not recover at the end: {error:#}"
        ));
    }
    eprintln!("chaos: verifying {} accounts", run.accounts().len());
    let accounts = run.accounts();
    let mut verifiers = JoinSet::new();
    for verifier in 0..VERIFIERS {
        let own = accounts.iter().skip(verifier).step_by(VERIFIERS).cloned();
        let own = own.collect();
        verifiers.spawn(client::verify_accounts(
            Arc::clone(run),
            random.split(),
            own,
        ));
    }
    verifiers.join_all().await;
    for panic in run.deployment.panics() {
        run.record_violation(format!("panic: {panic}"));
    }
    observers.abort_all();
    run.check()
}
