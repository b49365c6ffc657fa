//! Several gateways behind the balancer of `docker/balancer`, which share their quotas and forget ended sessions at once.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tests::client::Client;
use tests::load::{Load, LoadReport};
use tokio::runtime::{Handle, Runtime};

use crate::deployment::{Deployment, Service};
use crate::quota::{LEFT, UsedQuota};
use crate::wait::until;
use crate::{
    DURATION_AFTER, DURATION_BEFORE, REQUEST_PAUSE, USERS, check_consistency, images, progress,
    recover,
};

const UPGRADE: &str = "docker/upgrade-gateway.sh";
const GATEWAYS: usize = 2;
/// Address of the balancer in `docker/balancer/compose.yml`, which must not be that of a client.
const BALANCER: &str = "10.213.96.2";
/// Longest time until a gateway is started again, and the balancer uses it.
const RESTART_TIMEOUT: Duration = Duration::from_mins(1);
/// Commands of a client that opens 100 connections more than the balancer accepts of one, and prints how many stay open: those
/// in the state ESTABLISHED, 01.
const TOO_MANY_CONNECTIONS: &str = r#"
docker run --rm --ulimit nofile=4096 --network auth-edge-e2e_balancer haproxy:2.6-bookworm bash -c '
    for number in {1..2100}; do exec {connection}<>/dev/tcp/balancer/443; done
    open() { grep -c -E "^ *[0-9]+: [0-9A-F:]+ [0-9A-F]+:01BB 01 " /proc/net/tcp; }
    for attempt in {1..50}; do [ "$(open)" -gt 2000 ] || break; sleep 0.1; done
    open'
"#;
/// Identity at the edge for one path.
const IDENTITY: &str = "  identity:
    keys: http://auth-api:8000/.well-known/jwks.json
    sessions: ${REDIS_URL:-}
  paths:
    - pattern: /api/profile
      features: {auth: {required: true}}
";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    None,
    Replace,
    ReplaceAgain,
    ReplaceWithExitingProgram,
    ReplaceWithInvalidConfiguration,
    ReplaceAfterKill,
    Scale,
    RestartRedis,
    Kill,
    RenewCertificate,
    RestartBalancer,
    RestartDaemon,
    BackToOne,
}

impl Step {
    /// All steps, in the order in which they are carried out.
    const ALL: [Self; 13] = [
        Self::None,
        Self::Replace,
        Self::ReplaceAgain,
        Self::ReplaceWithExitingProgram,
        Self::ReplaceWithInvalidConfiguration,
        Self::ReplaceAfterKill,
        Self::Scale,
        Self::RestartRedis,
        Self::Kill,
        Self::RenewCertificate,
        Self::RestartBalancer,
        Self::RestartDaemon,
        Self::BackToOne,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Replace => "rolling replacement; 30 of 100 used before means 70 left after",
            Self::ReplaceAgain => "the same again",
            Self::ReplaceWithExitingProgram => "replacement by an image that exits",
            Self::ReplaceWithInvalidConfiguration => "replacement with an invalid configuration",
            Self::ReplaceAfterKill => "replacement after one that was killed at its first gateway",
            Self::Scale => "scale from 2 to 3 gateways and back",
            Self::RestartRedis => "restart Redis",
            Self::Kill => "a gateway is killed",
            Self::RenewCertificate => "the balancer reads the certificate again",
            Self::RestartBalancer => "restart the balancer",
            Self::RestartDaemon => "the Docker daemon restarts, as after a reboot",
            Self::BackToOne => "back to one gateway without a balancer",
        }
    }

    /// Returns true if no request may fail.
    fn is_seamless(self) -> bool {
        !matches!(
            self,
            Self::RestartRedis
                | Self::Kill
                | Self::RestartBalancer
                | Self::RestartDaemon
                | Self::BackToOne
        )
    }

    fn carry_out(self, deployment: &mut Deployment) -> Result<()> {
        match self {
            Self::None => {
                thread::sleep(DURATION_AFTER);
                expect_connection_limit(deployment)?;
                expect_identity(deployment)
            }
            Self::Replace | Self::ReplaceAgain => {
                let old = deployment.containers(Service::Gateway)?;
                let quota = UsedQuota::begin(deployment.client()?)?;
                replace(deployment, 2)?;
                let new = deployment.containers(Service::Gateway)?;
                ensure!(!old.iter().any(|id| new.contains(id)), "{old:?} {new:?}");
                expect_left(quota)?;
                expect_clients(deployment)
            }
            Self::ReplaceWithExitingProgram => {
                deployment.set("GATEWAY_IMAGE", "gateway-exits:e2e")?;
                unchanged(deployment, "the broken image exits")
            }
            Self::ReplaceWithInvalidConfiguration => {
                deployment.set("GATEWAY_IMAGE", &images::tag("gateway", 1))?;
                let file = deployment.path("config/gateway.yml");
                let config = fs::read_to_string(&file)?;
                fs::write(&file, "premier: {pahts: []}\n")?;
                let outcome = unchanged(deployment, "pahts");
                fs::write(&file, config)?;
                outcome
            }
            Self::ReplaceAfterKill => {
                deployment.kill_script(UPGRADE, || {
                    Ok(deployment.containers(Service::Gateway)?.len() > GATEWAYS)
                })?;
                replace(deployment, 1)
            }
            Self::Scale => {
                let quota = UsedQuota::begin(deployment.client()?)?;
                for count in [3, GATEWAYS] {
                    deployment.set("GATEWAY_REPLICAS", &count.to_string())?;
                    deployment.compose(&["up", "-d", "--no-recreate"])?;
                    until("the gateways to be ready", RESTART_TIMEOUT, || {
                        ready_gateways(deployment, count)
                    })?;
                    // The balancer finds the third one.
                    thread::sleep(DURATION_AFTER);
                }
                expect_left(quota)
            }
            Self::RestartRedis => deployment.compose(&["restart", "redis"]),
            Self::Kill => {
                let gateways = deployment.containers(Service::Gateway)?;
                let gateway = gateways.first().context("there is no gateway")?;
                deployment.signal(gateway, Signal::KILL)?;
                until("the gateway to be ready again", RESTART_TIMEOUT, || {
                    ready_gateways(deployment, GATEWAYS)
                })
            }
            Self::RenewCertificate => deployment.compose(&["kill", "-s", "USR2", "balancer"]),
            Self::RestartBalancer => deployment.compose(&["restart", "balancer"]),
            Self::RestartDaemon => deployment.engine.restart(),
            Self::BackToOne => {
                deployment.compose(&["rm", "--stop", "--force", "balancer"])?;
                deployment.set("GATEWAY_REPLICAS", "1")?;
                deployment.compose(&["up", "-d"])?;
                let client = deployment.client()?;
                Handle::current().block_on(recover(deployment, &client))?;
                let gateways = deployment.containers(Service::Gateway)?;
                ensure!(gateways.len() == 1, "{gateways:?}");
                Ok(())
            }
        }
    }
}

/// Starts the deployment with several gateways, as `docs/operations.md` says, carries out the steps under load and prints a
/// table of the results.
#[expect(clippy::print_stdout, reason = "the table is the program's output")]
pub(crate) fn run(deployment: &mut Deployment, runtime: &Runtime) -> Result<()> {
    let _context = runtime.enter();
    let file = deployment.path("config/gateway.yml");
    let shipped = fs::read_to_string(&file)?;
    let (before, after) = shipped
        .split_once("  paths:\n")
        .context("gateway.yml has no paths")?;
    fs::write(&file, format!("{before}{IDENTITY}{after}"))?;
    deployment.set("GATEWAY_REPLICAS", &GATEWAYS.to_string())?;
    deployment.set("GATEWAY_IMAGE", &images::tag("gateway", 1))?;
    deployment.set("AUTH_API_IMAGE", &images::tag("auth-api", 1))?;
    deployment.run_shell("openssl genpkey -algorithm ed25519 >secrets/signing_key")?;
    progress::report("starting the deployment with two gateways");
    deployment.compose(&["up", "-d"])?;
    let client = deployment.client()?;
    runtime.block_on(recover(deployment, &client))?;
    until("both gateways to be ready", RESTART_TIMEOUT, || {
        ready_gateways(deployment, GATEWAYS)
    })?;

    println!(
        "| step with two gateways | requests | responses by status | failed requests | contradictions | lost accounts | slowest |\n|---|---|---|---|---|---|---|"
    );
    for step in Step::ALL {
        let name = step.name();
        progress::report(name);
        let (report, lost_accounts) = runtime
            .block_on(under_load(deployment, &client, step))
            .with_context(|| format!("{name}\n{}", deployment.logs()))?;
        println!(
            "| {name} | {} | {} | {} | {} | {lost_accounts} | {:.2?} |",
            report.requests,
            report.status_summary(),
            report.failed_requests(),
            report.contradictions.len(),
            report.slowest,
        );
        check_consistency(name, &report, lost_accounts)?;
        ensure!(
            !step.is_seamless() || report.failed_requests() == 0,
            "{name}: {}\n{}",
            report.status_summary(),
            deployment.logs()
        );
        if step == Step::Kill {
            // At most the one request that each user had in flight.
            ensure!(
                report.failed_requests() <= USERS as u64,
                "{name}: {}",
                report.status_summary()
            );
        }
    }
    fs::write(&file, shipped)?;
    deployment.run_shell("echo >secrets/signing_key")?;
    deployment.compose(&["down"])
}

async fn under_load(
    deployment: &mut Deployment,
    client: &Client,
    step: Step,
) -> Result<(LoadReport, usize)> {
    let load = Load::start(deployment.clients(USERS)?, REQUEST_PAUSE);
    tokio::time::sleep(DURATION_BEFORE).await;
    tokio::task::block_in_place(|| step.carry_out(deployment))?;
    recover(deployment, client).await?;
    tokio::time::sleep(DURATION_AFTER).await;
    let report = load.finish().await;
    let lost_accounts = report.count_lost_accounts(client).await?;
    Ok((report, lost_accounts))
}

/// Replaces the gateways by a version. Their number has to stay.
fn replace(deployment: &Deployment, version: u8) -> Result<()> {
    let image = images::tag("gateway", version);
    deployment.set("GATEWAY_IMAGE", &image)?;
    deployment.run_script(UPGRADE)?;
    let images = deployment.images(Service::Gateway)?;
    ensure!(images == [image.clone(), image], "{images:?}");
    Ok(())
}

/// Never more than what is left, and of the whole quota at least 95 %: a gateway that ends returns its leases only as far as
/// Redis responds within half a second.
fn expect_left(quota: UsedQuota) -> Result<()> {
    const MAX_LOST: usize = 5;
    quota.expect_left(LEFT - MAX_LOST..=LEFT)
}

/// Returns an error if a replacement that has to fail, and to name the reason, changes the gateways.
fn unchanged(deployment: &Deployment, reason: &str) -> Result<()> {
    let before = deployment.containers(Service::Gateway)?;
    deployment.run_failing_script(UPGRADE, reason)?;
    let after = deployment.containers(Service::Gateway)?;
    ensure!(before == after, "{before:?} became {after:?}");
    Ok(())
}

/// Returns true if there are `count` gateways that share quotas, and all are ready.
fn ready_gateways(deployment: &Deployment, count: usize) -> Result<bool> {
    let gateways = deployment.containers(Service::Gateway)?;
    if gateways.len() != count {
        return Ok(false);
    }
    for gateway in &gateways {
        let shares_quotas = deployment.gateway_metric(gateway, "gateway_quota_store_up", &[]);
        if !deployment.is_ready(gateway, "gateway") || shares_quotas.ok() != Some(1.0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns an error if one client may have more connections than the balancer accepts of one.
fn expect_connection_limit(deployment: &Deployment) -> Result<()> {
    let open = deployment.run_shell(TOO_MANY_CONNECTIONS)?;
    ensure!(open == "2000", "{open} connections of a client stay open");
    Ok(())
}

/// Returns an error if a gateway does not remember tokens that auth-api verified, which it does while it hears of ended
/// sessions.
fn expect_identity(deployment: &Deployment) -> Result<()> {
    for gateway in deployment.containers(Service::Gateway)? {
        let name = "gateway_identity_checks_total";
        let remembered = deployment.gateway_metric(&gateway, name, &["outcome=\"remembered\""])?;
        ensure!(remembered > 0.0, "{gateway} remembers no token");
    }
    Ok(())
}

/// Returns an error if a gateway or auth-api takes the balancer for a client.
fn expect_clients(deployment: &Deployment) -> Result<()> {
    for service in [Service::Gateway, Service::AuthApi] {
        for container in deployment.containers(service)? {
            let log = deployment.docker().output(&["logs", &container])?;
            ensure!(log.contains("\"client\":\""), "no access log:\n{log}");
            let of_balancer = format!("\"client\":\"{BALANCER}\"");
            ensure!(!log.contains(&of_balancer), "{service:?}: {of_balancer}");
        }
    }
    Ok(())
}
