//! Operations that an operator carries out on a deployment.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::deployment::{Deployment, Service};

/// Duration of [`Operation::None`].
const NONE_DURATION: Duration = Duration::from_secs(4);
const ROLL: &str = "docker/roll-auth-api.sh";
const UPGRADE: &str = "docker/upgrade-gateway.sh";
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
    RollToAbsentProgram,
    RollToExitingProgram,
    RollToUnreachableImage,
    RollWithWrongRedisPassword,
    RollAuthApi,
    RollAuthApiAgain,
    UpgradeGatewayAsUser,
    UpgradeGatewayToUnreachableImage,
    UpgradeGatewayWithInvalidConfiguration,
    UpgradeGatewayToExitingProgram,
    UpgradeGateway,
    UpgradeGatewayAgain,
    PrepareAgain,
}

impl Operation {
    /// All operations, in the order in which they are carried out.
    pub(crate) const ALL: [Self; 19] = [
        Self::None,
        Self::ScaleUp,
        Self::ScaleDown,
        Self::KillReplica,
        Self::RestartRedis,
        Self::RestartPostgres,
        Self::RollToAbsentProgram,
        Self::RollToExitingProgram,
        Self::RollToUnreachableImage,
        Self::RollWithWrongRedisPassword,
        Self::RollAuthApi,
        Self::RollAuthApiAgain,
        Self::UpgradeGatewayAsUser,
        Self::UpgradeGatewayToUnreachableImage,
        Self::UpgradeGatewayWithInvalidConfiguration,
        Self::UpgradeGatewayToExitingProgram,
        Self::UpgradeGateway,
        Self::UpgradeGatewayAgain,
        Self::PrepareAgain,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ScaleUp => "scale auth-api from 2 to 4 replicas",
            Self::ScaleDown => "scale auth-api from 4 to 2 replicas",
            Self::KillReplica => "kill a replica",
            Self::RestartRedis => "restart Redis",
            Self::RestartPostgres => "restart PostgreSQL",
            Self::RollToAbsentProgram => "update of auth-api to an image that does not start",
            Self::RollToExitingProgram => "update of auth-api to an image that exits",
            Self::RollToUnreachableImage => "update of auth-api to an image that cannot be pulled",
            Self::RollWithWrongRedisPassword => "update of auth-api with a wrong Redis password",
            Self::RollAuthApi => "rolling update of auth-api",
            Self::RollAuthApiAgain => "the same update again",
            Self::UpgradeGatewayAsUser => "upgrade of the gateway without root",
            Self::UpgradeGatewayToUnreachableImage => {
                "upgrade of the gateway to an image that cannot be pulled"
            }
            Self::UpgradeGatewayWithInvalidConfiguration => {
                "upgrade of the gateway with an invalid configuration"
            }
            Self::UpgradeGatewayToExitingProgram => "upgrade of the gateway to an image that exits",
            Self::UpgradeGateway => "upgrade of the gateway",
            Self::UpgradeGatewayAgain => "the same upgrade again",
            Self::PrepareAgain => "prepare again, with umask 027",
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
            Self::RollToAbsentProgram => failing_roll(deployment, "auth-api-absent:e2e", "absent")?,
            Self::RollToExitingProgram => {
                failing_roll(deployment, "auth-api-exits:e2e", "unexpected argument")?;
            }
            Self::RollToUnreachableImage => {
                failing_roll(deployment, UNREACHABLE_IMAGE, "connection refused")?;
            }
            Self::RollWithWrongRedisPassword => {
                let file = deployment.path("secrets/redis_password");
                let password = fs::read(&file)?;
                fs::write(&file, "not the password of Redis")?;
                let outcome = failing_roll(deployment, "auth-api:e2e-2", "not ready");
                fs::write(&file, password)?;
                outcome?;
            }
            Self::RollAuthApi | Self::RollAuthApiAgain => {
                let old = deployment.containers(Service::AuthApi)?;
                deployment.set("AUTH_API_IMAGE", "auth-api:e2e-2")?;
                deployment.run_script(ROLL)?;
                let new = deployment.containers(Service::AuthApi)?;
                ensure!(old.len() == new.len(), "{old:?} became {new:?}");
                ensure!(!old.iter().any(|id| new.contains(id)), "{old:?} {new:?}");
                expect_image(deployment, Service::AuthApi, "auth-api:e2e-2")?;
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
                let file = deployment.path("config/gateway.yml");
                let config = fs::read_to_string(&file)?;
                fs::write(&file, "premier: {pahts: []}\n")?;
                let outcome = failing_upgrade(deployment, "gateway:e2e-2", "pahts");
                fs::write(&file, config)?;
                outcome?;
            }
            Self::UpgradeGatewayToExitingProgram => {
                failing_upgrade(deployment, "gateway-exits:e2e", "the broken image exits")?;
            }
            Self::UpgradeGateway | Self::UpgradeGatewayAgain => {
                deployment.set("GATEWAY_IMAGE", "gateway:e2e-2")?;
                deployment.run_script(UPGRADE)?;
                expect_image(deployment, Service::Gateway, "gateway:e2e-2")?;
            }
            Self::PrepareAgain => {
                // The copy keeps the mode of the file that the script has created.
                let script = "umask 027; mv config former; docker/prepare.sh; \
                     cp former/gateway.yml config/; docker/upgrade-gateway.sh";
                deployment.run_shell(script)?;
            }
        }
        Ok(())
    }
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
    })
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
