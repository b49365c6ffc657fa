//! End-to-end test of the production deployment on a Docker daemon of its own: carries out an
//! operator's tasks and causes faults under load, and prints what clients observed, as tables. Run by
//! `make e2e`, which gives it a folder for the daemon.

mod deployment;
mod docker;
mod engine;
mod operation;
mod recovery;
mod wait;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::client::Client;
use tests::load::{Load, LoadReport};

use crate::deployment::Deployment;
use crate::docker::Docker;
use crate::operation::Operation;
use crate::recovery::Fault;

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
    Faults,
}

impl Part {
    const ALL: [Self; 2] = [Self::Operations, Self::Faults];

    fn name(self) -> &'static str {
        match self {
            Self::Operations => "operations",
            Self::Faults => "faults",
        }
    }

    /// Returns the parts that an argument selects: all if there is none.
    fn selected(argument: Option<&str>) -> Result<Vec<Self>> {
        let Some(name) = argument else {
            return Ok(Self::ALL.to_vec());
        };
        let part = Self::ALL.into_iter().find(|part| part.name() == name);
        Ok(vec![part.with_context(|| {
            format!("`{name}` is no part: {:?}", Self::ALL.map(Self::name))
        })?])
    }
}

fn main() -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()?;
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().context("run this test by `make e2e`")?;
    let parts = Part::selected(arguments.next().as_deref())?;
    let mut deployment = Deployment::prepare(&root, folder.as_ref())?;
    tokio::runtime::Runtime::new()?.block_on(run(&mut deployment, &parts))
}

async fn run(deployment: &mut Deployment, parts: &[Part]) -> Result<()> {
    deployment.compose(&["up", "-d"])?;
    let client = deployment.client()?;
    recover(deployment, &client).await?;
    for part in parts {
        match part {
            Part::Operations => carry_out_operations(deployment, &client).await?,
            Part::Faults => cause_faults(deployment, &client).await?,
        }
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the tables are the program's output")]
async fn carry_out_operations(deployment: &Deployment, client: &Client) -> Result<()> {
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
        let load = Load::start(deployment.clients(USERS)?, REQUEST_PAUSE);
        tokio::time::sleep(DURATION_BEFORE).await;
        tokio::task::block_in_place(|| operation.carry_out(deployment))
            .with_context(|| operation.name())?;
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
        check_availability(operation, &report)?;
    }
    println!("\nUnder load:\n\n{memory_under_load}");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the table is the program's output")]
async fn cause_faults(deployment: &mut Deployment, client: &Client) -> Result<()> {
    println!(
        "| fault | serves again after | responses by status | contradictions | lost accounts |\n|---|---|---|---|---|"
    );
    for fault in Fault::ALL {
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
