//! Operations that an operator carries out on a deployment.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::runbook::Runbook;
use tokio::runtime::Handle;

use crate::deployment::{Deployment, Service};
use crate::images;
use crate::quota::{LEFT, UsedQuota};
use crate::wait::until;

/// Duration of [`Operation::None`].
const NONE_DURATION: Duration = Duration::from_secs(4);
/// Longest time until a changed configuration is read.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(20);
const ROLL: &str = "docker/roll-auth-api.sh";
const UPGRADE: &str = "docker/upgrade-gateway.sh";
/// Part of the name of the temporary gateway, and of the comment of its firewall rules.
const TEMPORARY: &str = "_gateway_upgrade";
/// Number of replicas of auth-api except while it is scaled.
const REPLICAS: usize = 2;
/// Image of a registry that does not respond: the port is reserved.
const UNREACHABLE_IMAGE: &str = "127.0.0.1:1/program:1";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    None,
    ScaleUp,
    ScaleDown,
    KillReplica,
    RestartRedis,
    RestartPostgres,
    RollAsUser,
    RollToAbsentProgram,
    RollToExitingProgram,
    RollToUnreachableImage,
    RollWithWrongRedisPassword,
    RollAuthApi,
    RollAuthApiAgain,
    RollAfterKill,
    RollAfterLateKill,
    UpgradeGatewayAsUser,
    UpgradeGatewayToUnreachableImage,
    UpgradeGatewayWithInvalidConfiguration,
    UpgradeGatewayToExitingProgram,
    UpgradeGatewayToExitingInService,
    UpgradeGateway,
    UpgradeGatewayAgain,
    UpgradeGatewayAfterKill,
    UpgradeGatewayAfterLateKill,
    PrepareAgain,
    RotateSecretKey,
    IntroduceSigningKey,
    MistakeInConfiguration,
}

impl Operation {
    /// All operations, in the order in which they are carried out.
    pub(crate) const ALL: [Self; 28] = [
        Self::None,
        Self::ScaleUp,
        Self::ScaleDown,
        Self::KillReplica,
        Self::RestartRedis,
        Self::RestartPostgres,
        Self::RollAsUser,
        Self::RollToAbsentProgram,
        Self::RollToExitingProgram,
        Self::RollToUnreachableImage,
        Self::RollWithWrongRedisPassword,
        Self::RollAuthApi,
        Self::RollAuthApiAgain,
        Self::RollAfterKill,
        Self::RollAfterLateKill,
        Self::UpgradeGatewayAsUser,
        Self::UpgradeGatewayToUnreachableImage,
        Self::UpgradeGatewayWithInvalidConfiguration,
        Self::UpgradeGatewayToExitingProgram,
        Self::UpgradeGatewayToExitingInService,
        Self::UpgradeGateway,
        Self::UpgradeGatewayAgain,
        Self::UpgradeGatewayAfterKill,
        Self::UpgradeGatewayAfterLateKill,
        Self::PrepareAgain,
        Self::RotateSecretKey,
        Self::IntroduceSigningKey,
        Self::MistakeInConfiguration,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ScaleUp => "scale auth-api from 2 to 4 replicas",
            Self::ScaleDown => "scale auth-api from 4 to 2 replicas",
            Self::KillReplica => "kill a replica",
            Self::RestartRedis => "restart Redis",
            Self::RestartPostgres => "restart PostgreSQL",
            Self::RollAsUser => "update of auth-api without access to Docker",
            Self::RollToAbsentProgram => "update of auth-api to an image that does not start",
            Self::RollToExitingProgram => "update of auth-api to an image that exits",
            Self::RollToUnreachableImage => "update of auth-api to an image that cannot be pulled",
            Self::RollWithWrongRedisPassword => "update of auth-api with a wrong Redis password",
            Self::RollAuthApi => "rolling update of auth-api",
            Self::RollAuthApiAgain => "the same update again",
            Self::RollAfterKill => {
                "update of auth-api after one that was killed at its first new replica"
            }
            Self::RollAfterLateKill => {
                "update of auth-api after one that was killed while an old replica stopped"
            }
            Self::UpgradeGatewayAsUser => "upgrade of the gateway without root",
            Self::UpgradeGatewayToUnreachableImage => {
                "upgrade of the gateway to an image that cannot be pulled"
            }
            Self::UpgradeGatewayWithInvalidConfiguration => {
                "upgrade of the gateway with an invalid configuration"
            }
            Self::UpgradeGatewayToExitingProgram => "upgrade of the gateway to an image that exits",
            Self::UpgradeGatewayToExitingInService => {
                "upgrade of the gateway to an image that exits in place of the old one, which is restored"
            }
            Self::UpgradeGateway => {
                "upgrade of the gateway; 30 of 100 used before means 70 left after"
            }
            Self::UpgradeGatewayAgain => "the same upgrade again",
            Self::UpgradeGatewayAfterKill => {
                "upgrade of the gateway after one that was killed before the old one stopped"
            }
            Self::UpgradeGatewayAfterLateKill => {
                "upgrade of the gateway after one that was killed when the old one had stopped"
            }
            Self::PrepareAgain => "prepare again, with umask 027",
            Self::RotateSecretKey => "rotation of SECRET_KEY, all steps",
            Self::IntroduceSigningKey => "introduction of a SIGNING_KEY, all steps",
            Self::MistakeInConfiguration => "a mistake in gateway.yml, and its correction",
        }
    }

    /// Returns the statuses with which requests may fail: while a store of which there is only one
    /// restarts, and when a replica dies.
    pub(crate) fn allowed_outages(self) -> &'static [u16] {
        match self {
            Self::RestartRedis | Self::RestartPostgres => &[503],
            // The replica may have executed a request in flight, so only the client can decide
            // whether to retry it.
            Self::KillReplica => &[502],
            _ => &[],
        }
    }

    pub(crate) fn carry_out(self, deployment: &Deployment) -> Result<()> {
        match self {
            Self::None => std::thread::sleep(NONE_DURATION),
            Self::ScaleUp => deployment.scale_auth_api(4)?,
            Self::ScaleDown => deployment.scale_auth_api(2)?,
            Self::KillReplica => deployment.kill_replica()?,
            Self::RestartRedis => deployment.compose(&["restart", "redis"])?,
            Self::RestartPostgres => deployment.compose(&["restart", "postgres"])?,
            Self::RollAsUser => unchanged(deployment, Service::AuthApi, || {
                deployment.run_failing_script_as_user(ROLL, "permission denied")
            })?,
            Self::RollToAbsentProgram => failing_roll(deployment, "auth-api-absent:e2e", "absent")?,
            Self::RollToExitingProgram => {
                failing_roll(deployment, "auth-api-exits:e2e", "unexpected argument")?;
            }
            Self::RollToUnreachableImage => {
                failing_roll(deployment, UNREACHABLE_IMAGE, "connection refused")?;
            }
            Self::RollWithWrongRedisPassword => roll_with_wrong_redis_password(deployment)?,
            Self::RollAuthApi | Self::RollAuthApiAgain => {
                let old = deployment.containers(Service::AuthApi)?;
                roll(deployment, &images::tag("auth-api", 2))?;
                let new = deployment.containers(Service::AuthApi)?;
                ensure!(!old.iter().any(|id| new.contains(id)), "{old:?} {new:?}");
            }
            Self::RollAfterKill => {
                deployment.set("AUTH_API_IMAGE", &images::tag("auth-api", 1))?;
                deployment.kill_script(ROLL, || {
                    Ok(deployment.containers(Service::AuthApi)?.len() > REPLICAS)
                })?;
                roll(deployment, &images::tag("auth-api", 1))?;
            }
            Self::RollAfterLateKill => {
                deployment.set("AUTH_API_IMAGE", &images::tag("auth-api", 2))?;
                let old = deployment.containers(Service::AuthApi)?;
                deployment.kill_script(ROLL, || {
                    Ok(!old.iter().all(|id| deployment.is_ready(id, "auth-api")))
                })?;
                roll(deployment, &images::tag("auth-api", 2))?;
            }
            Self::UpgradeGatewayAsUser => {
                deployment.set("GATEWAY_IMAGE", "gateway:e2e-2")?;
                unchanged(deployment, Service::Gateway, || {
                    deployment.run_failing_script_as_user(UPGRADE, "run it as root")
                })?;
            }
            Self::UpgradeGatewayToUnreachableImage => {
                failing_upgrade(deployment, UNREACHABLE_IMAGE, "connection refused")?;
            }
            Self::UpgradeGatewayWithInvalidConfiguration => {
                upgrade_with_invalid_configuration(deployment)?;
            }
            Self::UpgradeGatewayToExitingProgram => {
                failing_upgrade(deployment, "gateway-exits:e2e", "the broken image exits")?;
            }
            Self::UpgradeGatewayToExitingInService => {
                let before = deployment.images(Service::Gateway)?;
                deployment.set("GATEWAY_IMAGE", "gateway-exits-in-service:e2e")?;
                deployment.run_failing_script(UPGRADE, "the broken image exits in service")?;
                expect_no_trace(deployment)?;
                let after = deployment.image_ids(Service::Gateway)?;
                let image = deployment.docker().image_id(&before[0])?;
                ensure!(after == [image], "{before:?} became {after:?}");
            }
            Self::UpgradeGateway | Self::UpgradeGatewayAgain => {
                let old = deployment.containers(Service::Gateway)?;
                let quota = UsedQuota::begin(deployment.client()?)?;
                upgrade(deployment, &images::tag("gateway", 2))?;
                let new = deployment.containers(Service::Gateway)?;
                ensure!(old != new, "{old:?} is still there");
                quota.expect_left(LEFT..=LEFT)?;
            }
            Self::UpgradeGatewayAfterKill => {
                deployment.set("GATEWAY_IMAGE", &images::tag("gateway", 1))?;
                deployment.kill_script(UPGRADE, || {
                    Ok(firewall_rules(deployment)?.contains(TEMPORARY))
                })?;
                upgrade(deployment, &images::tag("gateway", 1))?;
            }
            Self::UpgradeGatewayAfterLateKill => {
                deployment.set("GATEWAY_IMAGE", &images::tag("gateway", 2))?;
                let old = deployment.containers(Service::Gateway)?;
                deployment.kill_script(UPGRADE, || {
                    let docker = deployment.docker();
                    let running = docker.inspect(&old[0], "{{.State.Running}}");
                    Ok(!running.is_ok_and(|running| running == "true"))
                })?;
                upgrade(deployment, &images::tag("gateway", 2))?;
            }
            Self::PrepareAgain => {
                // The copy keeps the mode of the file that the script has created.
                let script = "umask 027; mv config former; docker/prepare.sh; \
                     cp former/gateway.yml config/; docker/upgrade-gateway.sh";
                deployment.run_shell(script)?;
            }
            Self::RotateSecretKey => rotate(deployment, "> secrets/secret_key_next")?,
            Self::IntroduceSigningKey => rotate(deployment, "> secrets/signing_key_next")?,
            Self::MistakeInConfiguration => make_mistake(deployment)?,
        }
        Ok(())
    }
}

/// Rotates a key by the commands of `docs/operations.md`. A token from before is valid until the last step, which follows
/// after its expiry.
fn rotate(deployment: &Deployment, command: &str) -> Result<()> {
    let document = Runbook::parse(include_str!("../../../../docs/operations.md"));
    let steps = document.commands(command)?;
    let client = deployment.client()?;
    let login = format!("before {command}");
    let token = Handle::current().block_on(client.register_and_login(&login))?;
    let (last, first) = steps.split_last().context("no steps")?;
    ensure!(first.len() == 2, "{steps:?}");
    for step in first {
        deployment.run_shell(step)?;
        let profile = Handle::current().block_on(client.get_with_token(&token, "/api/profile"))?;
        ensure!(profile.status == 200, "after {step}: {}", profile.text);
    }
    deployment.run_shell(last)?;
    Ok(())
}

/// Saves an invalid configuration, which must change nothing, and corrects it.
fn make_mistake(deployment: &Deployment) -> Result<()> {
    const CHECK: &str = "docker/compose exec -T gateway gateway check";
    const SUCCESS: &str = "gateway_last_reload_success";
    let file = deployment.path("config/gateway.yml");
    let config = fs::read_to_string(&file)?;
    deployment.run_shell(CHECK)?;
    let gateways = deployment.containers(Service::Gateway)?;
    let gateway = gateways.first().context("there is no gateway")?;
    for (text, expected) in [
        (
            config.replace("algorithm: fixed_window", "algoritm: fixed_window"),
            0.0,
        ),
        (config, 1.0),
    ] {
        fs::write(&file, text)?;
        until("the gateway to read the file", RELOAD_TIMEOUT, || {
            Ok(deployment.gateway_metric(gateway, SUCCESS, &[]).ok() == Some(expected))
        })?;
        let check = deployment.run_shell(CHECK);
        match check {
            Ok(_) => ensure!(expected > 0.0, "the mistake is not found"),
            Err(error) => ensure!(
                error.to_string().contains("did you mean `algorithm`?"),
                "{error}"
            ),
        }
    }
    Ok(())
}

/// Updates auth-api to an image. The number of replicas has to stay, also after a run that was killed.
fn roll(deployment: &Deployment, image: &str) -> Result<()> {
    deployment.set("AUTH_API_IMAGE", image)?;
    deployment.run_script(ROLL)?;
    let replicas = deployment.containers(Service::AuthApi)?;
    ensure!(replicas.len() == REPLICAS, "{replicas:?}");
    expect_image(deployment, Service::AuthApi, image)
}

/// Upgrades the gateway to an image.
fn upgrade(deployment: &Deployment, image: &str) -> Result<()> {
    deployment.set("GATEWAY_IMAGE", image)?;
    deployment.run_script(UPGRADE)?;
    expect_image(deployment, Service::Gateway, image)?;
    expect_no_trace(deployment)
}

fn firewall_rules(deployment: &Deployment) -> Result<String> {
    deployment.run_shell("iptables -w -t nat -S")
}

/// Returns an error if an upgrade has left more than one gateway, or a firewall rule.
fn expect_no_trace(deployment: &Deployment) -> Result<()> {
    let docker = deployment.docker();
    let containers = docker.output(&["ps", "--all", "--format", "{{.Names}}"])?;
    let gateways = deployment.containers(Service::Gateway)?;
    ensure!(!containers.contains(TEMPORARY), "{containers}");
    ensure!(gateways.len() == 1, "{containers}");
    let rules = firewall_rules(deployment)?;
    ensure!(!rules.contains(TEMPORARY), "{rules}");
    Ok(())
}

/// Updates auth-api to an image with which no replica becomes ready. The old replicas have to stay.
fn failing_roll(deployment: &Deployment, image: &str, reason: &str) -> Result<()> {
    deployment.set("AUTH_API_IMAGE", image)?;
    unchanged(deployment, Service::AuthApi, || {
        deployment.run_failing_script(ROLL, reason)
    })
}

/// Upgrades the gateway to an image that does not work. The old one has to stay.
fn failing_upgrade(deployment: &Deployment, image: &str, reason: &str) -> Result<()> {
    deployment.set("GATEWAY_IMAGE", image)?;
    unchanged(deployment, Service::Gateway, || {
        deployment.run_failing_script(UPGRADE, reason)
    })?;
    expect_no_trace(deployment)
}

fn roll_with_wrong_redis_password(deployment: &Deployment) -> Result<()> {
    let file = deployment.path("secrets/redis_password");
    let password = fs::read(&file)?;
    fs::write(&file, "not the password of Redis")?;
    let outcome = failing_roll(deployment, &images::tag("auth-api", 2), "not ready");
    fs::write(&file, password)?;
    outcome
}

fn upgrade_with_invalid_configuration(deployment: &Deployment) -> Result<()> {
    let file = deployment.path("config/gateway.yml");
    let config = fs::read_to_string(&file)?;
    fs::write(&file, "premier: {pahts: []}\n")?;
    let outcome = failing_upgrade(deployment, &images::tag("gateway", 2), "pahts");
    fs::write(&file, config)?;
    outcome
}

/// Returns an error if `procedure` changes the containers of a service.
fn unchanged(
    deployment: &Deployment,
    service: Service,
    procedure: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let before = deployment.containers(service)?;
    procedure()?;
    let after = deployment.containers(service)?;
    ensure!(before == after, "{before:?} became {after:?}");
    Ok(())
}

fn expect_image(deployment: &Deployment, service: Service, expected: &str) -> Result<()> {
    let images = deployment.images(service)?;
    ensure!(images.iter().all(|image| image == expected), "{images:?}");
    Ok(())
}
