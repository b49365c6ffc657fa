//! End-to-end test of the production deployment on a Docker daemon of its own: carries out an
//! operator's tasks and causes faults under load, and prints what clients observed, as tables. Run by
//! `make e2e`, which gives it a folder for the daemon.

mod deployment;
mod disasters;
mod docker;
mod engine;
mod gateways;
mod images;
mod operation;
mod progress;
mod quota;
mod recovery;
mod small_disk;
mod swarm;
mod systemd;
mod wait;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::client::Client;
use tests::load::{Load, LoadReport};
use tokio::runtime::Runtime;

use crate::deployment::Deployment;
use crate::docker::Docker;
use crate::engine::Engine;
use crate::images::Images;
use crate::operation::Operation;
use crate::recovery::Fault;
use crate::swarm::SwarmStep;

const USERS: usize = 8;
/// Pause of a user before each request.
const REQUEST_PAUSE: Duration = Duration::from_millis(50);
/// Duration of the load before an operation.
const DURATION_BEFORE: Duration = Duration::from_secs(1);
/// Duration of the load after an operation.
const DURATION_AFTER: Duration = Duration::from_secs(4);
/// Longest time until the deployment serves again after its start or a fault. The back-off of Docker is at
/// most a minute.
const RECOVERY_TIMEOUT: Duration = Duration::from_mins(2);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Part of the test that runs alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Operations,
    Gateways,
    Faults,
    Disasters,
    Swarm,
    Systemd,
}

impl Part {
    const ALL: [Self; 6] = [
        Self::Operations,
        Self::Gateways,
        Self::Faults,
        Self::Disasters,
        Self::Swarm,
        Self::Systemd,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Operations => "operations",
            Self::Gateways => "gateways",
            Self::Faults => "faults",
            Self::Disasters => "disasters",
            Self::Swarm => "swarm",
            Self::Systemd => "systemd",
        }
    }

    /// Returns the parts that arguments select: all if there is none.
    fn selected(arguments: impl Iterator<Item = String>) -> Result<Vec<Self>> {
        let part = |name: String| {
            let part = Self::ALL.into_iter().find(|part| part.name() == name);
            part.with_context(|| format!("`{name}` is no part: {:?}", Self::ALL.map(Self::name)))
        };
        let parts: Vec<_> = arguments.map(part).collect::<Result<_>>()?;
        Ok(if parts.is_empty() {
            Self::ALL.to_vec()
        } else {
            parts
        })
    }
}

fn main() -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()?;
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().context("run this test by `make e2e`")?;
    let images = arguments.next().context("run this test by `make e2e`")?;
    let parts = Part::selected(arguments)?;
    Images::parse(&images)?.provide(&root)?;
    progress::report("starting a Docker daemon");
    let folder = PathBuf::from(folder);
    let name = folder.file_name().context("the folder has a name")?;
    let engine = Engine::start(&folder.join("engine"), &name.to_string_lossy())?;
    images::load(&root, &engine)?;
    let mut deployment = Deployment::prepare(&root, folder.join("deployment"), engine)?;
    let runtime = Runtime::new()?;
    for part in parts {
        match part {
            Part::Operations => {
                start(&runtime, &deployment)?;
                runtime.block_on(carry_out_operations(&deployment))?;
                stop(&deployment)?;
            }
            Part::Gateways => gateways::run(&mut deployment, &runtime)?,
            Part::Faults => {
                start(&runtime, &deployment)?;
                runtime.block_on(cause_faults(&mut deployment))?;
                stop(&deployment)?;
            }
            Part::Disasters => {
                start(&runtime, &deployment)?;
                disasters::run(&deployment, &runtime)?;
                stop(&deployment)?;
            }
            Part::Swarm => {
                progress::report("deploying the stack on a Swarm");
                swarm::start(&deployment)?;
                runtime.block_on(carry_out_swarm_steps(&deployment))?;
                swarm::stop(&deployment)?;
            }
            Part::Systemd => systemd::run(&root, &deployment, &runtime)?,
        }
    }
    Ok(())
}

/// Starts the deployment and waits until it serves.
fn start(runtime: &Runtime, deployment: &Deployment) -> Result<()> {
    progress::report("starting the deployment");
    deployment.compose(&["up", "-d"])?;
    runtime.block_on(async { recover(deployment, &deployment.client()?).await })?;
    Ok(())
}

fn stop(deployment: &Deployment) -> Result<()> {
    progress::report("stopping the deployment");
    deployment.compose(&["down"])
}

#[expect(clippy::print_stdout, reason = "the tables are the program's output")]
async fn carry_out_operations(deployment: &Deployment) -> Result<()> {
    let client = &deployment.client()?;
    println!("| image | size |\n|---|---|");
    for image in ["gateway", "auth-api"] {
        let size = Docker::of_machine().image_size_mib(&format!("{image}:e2e-1"))?;
        println!("| {image} | {size:.1} MiB |");
    }
    println!("\nIdle:\n\n{}", deployment.memory_table()?);

    println!(
        "| operation | requests | responses by status | failed requests | contradictions | lost accounts | slowest |\n|---|---|---|---|---|---|---|"
    );
    let mut memory_under_load = String::new();
    for operation in Operation::ALL {
        progress::report(operation.name());
        let load = Load::start(deployment.clients(USERS)?, REQUEST_PAUSE);
        tokio::time::sleep(DURATION_BEFORE).await;
        tokio::task::block_in_place(|| operation.carry_out(deployment))
            .with_context(|| format!("{}\n{}", operation.name(), deployment.logs()))?;
        tokio::time::sleep(DURATION_AFTER).await;
        if operation == Operation::None {
            memory_under_load = deployment.memory_table()?;
        }
        let report = load.finish().await;
        let lost_accounts = report.count_lost_accounts(client).await?;
        println!(
            "| {} | {} | {} | {} | {} | {lost_accounts} | {:.2?} |",
            operation.name(),
            report.requests,
            report.status_summary(),
            report.failed_requests(),
            report.contradictions.len(),
            report.slowest,
        );
        check_consistency(operation.name(), &report, lost_accounts)?;
        check_availability(operation, &report).with_context(|| deployment.logs())?;
    }
    println!("\nUnder load:\n\n{memory_under_load}");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the table is the program's output")]
async fn cause_faults(deployment: &mut Deployment) -> Result<()> {
    let client = &deployment.client()?;
    println!(
        "| fault | serves again after | responses by status | contradictions | lost accounts |\n|---|---|---|---|---|"
    );
    for fault in Fault::ALL {
        progress::report(fault.name());
        let load = Load::start(deployment.clients(USERS)?, REQUEST_PAUSE);
        tokio::time::sleep(DURATION_BEFORE).await;
        tokio::task::block_in_place(|| fault.cause(deployment))
            .with_context(|| format!("{}\n{}", fault.name(), deployment.logs()))?;
        let outage = recover(deployment, client)
            .await
            .with_context(|| fault.name())?;
        tokio::time::sleep(DURATION_AFTER).await;
        let report = load.finish().await;
        let lost_accounts = report.count_lost_accounts(client).await?;
        println!(
            "| {} | {outage:.1?} | {} | {} | {lost_accounts} |",
            fault.name(),
            report.status_summary(),
            report.contradictions.len(),
        );
        check_consistency(fault.name(), &report, lost_accounts)?;
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the table is the program's output")]
async fn carry_out_swarm_steps(deployment: &Deployment) -> Result<()> {
    let client = &deployment.client()?;
    recover(deployment, client).await?;
    println!(
        "| step on a Swarm | took | responses by status | failed requests | contradictions | lost accounts |\n|---|---|---|---|---|---|"
    );
    for step in SwarmStep::ALL {
        progress::report(step.name());
        let load = Load::start(deployment.clients(USERS)?, REQUEST_PAUSE);
        tokio::time::sleep(DURATION_BEFORE).await;
        let start = Instant::now();
        tokio::task::block_in_place(|| step.carry_out(deployment))
            .with_context(|| format!("{}\n{}", step.name(), swarm::tasks(&deployment.docker())))?;
        recover(deployment, client)
            .await
            .with_context(|| step.name())?;
        let duration = start.elapsed();
        tokio::time::sleep(DURATION_AFTER).await;
        let report = load.finish().await;
        let lost_accounts = report.count_lost_accounts(client).await?;
        println!(
            "| {} | {duration:.1?} | {} | {} | {} | {lost_accounts} |",
            step.name(),
            report.status_summary(),
            report.failed_requests(),
            report.contradictions.len(),
        );
        check_consistency(step.name(), &report, lost_accounts)?;
        ensure!(
            !step.is_seamless() || report.failed_requests() == 0,
            "{}: {}",
            step.name(),
            report.status_summary()
        );
    }
    Ok(())
}

/// Waits until the deployment serves logins, which need every service, and returns the time that it took.
async fn recover(deployment: &Deployment, client: &Client) -> Result<Duration> {
    let start = Instant::now();
    let serves = async || {
        let registered = client.register("first").await?;
        let logged_in = client.login("first").await?;
        ensure!(
            [201, 409].contains(&registered.status) && logged_in.status == 200,
            "registration: {}, login: {}",
            registered.status,
            logged_in.status
        );
        Ok(())
    };
    while let Err(error) = serves().await {
        if start.elapsed() > RECOVERY_TIMEOUT {
            return Err(error.context(format!(
                "the deployment does not serve within {RECOVERY_TIMEOUT:?}\n{}",
                deployment.logs()
            )));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(start.elapsed())
}

/// Returns an error if a response was wrong or an account was lost.
fn check_consistency(name: &str, report: &LoadReport, lost_accounts: usize) -> Result<()> {
    ensure!(
        report.contradictions.is_empty(),
        "{name}: {:#?}",
        report.contradictions
    );
    ensure!(
        lost_accounts == 0,
        "{name}: {lost_accounts} accounts are lost"
    );
    Ok(())
}

/// Returns an error if a request failed that the operation does not allow to fail.
fn check_availability(operation: Operation, report: &LoadReport) -> Result<()> {
    let name = operation.name();
    let unexpected = report
        .responses_by_status
        .keys()
        .find(|status| **status >= 500 && !operation.allowed_outages().contains(status));
    ensure!(
        unexpected.is_none() && report.without_response == 0,
        "{name}: {}",
        report.status_summary()
    );
    if operation == Operation::KillReplica {
        // At most the one request that each user had in flight.
        ensure!(
            report.failed_requests() <= USERS as u64,
            "{name}: {}",
            report.status_summary()
        );
    }
    Ok(())
}
