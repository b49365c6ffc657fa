//! End-to-end test of the production deployment on the local Docker Engine: carries out an
//! operator's tasks under load and prints what clients observed, as tables. Run by `make e2e`.

mod deployment;
mod docker;
mod operation;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::load::{Load, LoadReport};
use tests::wait;

use crate::deployment::Deployment;
use crate::operation::Operation;

const USERS: usize = 8;
/// Pause of a user before each request.
const REQUEST_PAUSE: Duration = Duration::from_millis(50);
/// Duration of the load before an operation.
const DURATION_BEFORE: Duration = Duration::from_secs(1);
/// Duration of the load after an operation.
const DURATION_AFTER: Duration = Duration::from_secs(4);

fn main() -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()?;
    docker::ensure_running()?;
    let deployment = Deployment::prepare(&root)?;
    tokio::runtime::Runtime::new()?.block_on(run(&deployment))
}

#[expect(clippy::print_stdout, reason = "the tables are the program's output")]
async fn run(deployment: &Deployment) -> Result<()> {
    deployment.compose(&["up", "-d"])?;
    let client = deployment.client()?;
    wait::until("the edge", async || {
        client
            .get("/health")
            .await
            .is_ok_and(|response| response.status == 200)
            && client
                .register("first")
                .await
                .is_ok_and(|response| [201, 409].contains(&response.status))
    })
    .await
    .with_context(|| deployment.logs())?;

    println!("| image | size |\n|---|---|");
    for image in ["gateway", "auth-api"] {
        let size = docker::image_size_mib(&format!("{image}:e2e-1"))?;
        println!("| {image} | {size:.1} MiB |");
    }
    println!("\nIdle:\n\n{}", deployment.memory_table()?);

    println!(
        "| operation | requests | responses by status | failed requests | contradictions | lost accounts | slowest |\n|---|---|---|---|---|---|---|"
    );
    let mut memory_under_load = String::new();
    for operation in Operation::ALL {
        let clients: Result<Vec<_>> = (0..USERS).map(|_| deployment.client()).collect();
        let load = Load::start(clients?, REQUEST_PAUSE);
        tokio::time::sleep(DURATION_BEFORE).await;
        tokio::task::block_in_place(|| operation.carry_out(deployment))?;
        tokio::time::sleep(DURATION_AFTER).await;
        if operation == Operation::None {
            memory_under_load = deployment.memory_table()?;
        }
        let report = load.finish().await;
        let lost_accounts = report.count_lost_accounts(&client).await?;
        println!(
            "| {} | {} | {} | {} | {} | {lost_accounts} | {:.2?} |",
            operation.name(),
            report.requests,
            report.status_summary(),
            report.failed_requests(),
            report.contradictions.len(),
            report.slowest,
        );
        check(operation, &report, lost_accounts)?;
    }
    println!("\nUnder load:\n\n{memory_under_load}");
    Ok(())
}

/// Returns an error if a response was wrong, an account was lost, or a request failed that the
/// operation does not allow to fail.
fn check(operation: Operation, report: &LoadReport, lost_accounts: usize) -> Result<()> {
    let name = operation.name();
    ensure!(
        report.contradictions.is_empty(),
        "{name}: {:#?}",
        report.contradictions
    );
    ensure!(
        lost_accounts == 0,
        "{name}: {lost_accounts} accounts are lost"
    );
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
