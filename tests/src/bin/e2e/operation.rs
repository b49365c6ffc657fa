//! Operations that an operator carries out on a deployment.

use std::time::Duration;

use anyhow::Result;

use crate::deployment::Deployment;

/// Duration of [`Operation::None`].
const NONE_DURATION: Duration = Duration::from_secs(4);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    None,
    ScaleUp,
    ScaleDown,
    KillReplica,
    RestartRedis,
    RestartPostgres,
    RollAuthApi,
    UpgradeGateway,
}

impl Operation {
    /// All operations, in the order in which they are carried out.
    pub(crate) const ALL: [Self; 8] = [
        Self::None,
        Self::ScaleUp,
        Self::ScaleDown,
        Self::KillReplica,
        Self::RestartRedis,
        Self::RestartPostgres,
        Self::RollAuthApi,
        Self::UpgradeGateway,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ScaleUp => "scale auth-api from 2 to 4 replicas",
            Self::ScaleDown => "scale auth-api from 4 to 2 replicas",
            Self::KillReplica => "kill a replica",
            Self::RestartRedis => "restart Redis",
            Self::RestartPostgres => "restart PostgreSQL",
            Self::RollAuthApi => "rolling update of auth-api",
            Self::UpgradeGateway => "upgrade of the gateway",
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
            Self::RollAuthApi => {
                deployment.set("AUTH_API_IMAGE", "auth-api:e2e-2")?;
                deployment.run_script("docker/roll-auth-api.sh")?;
            }
            Self::UpgradeGateway => {
                deployment.set("GATEWAY_IMAGE", "gateway:e2e-2")?;
                deployment.run_script("docker/upgrade-gateway.sh")?;
            }
        }
        Ok(())
    }
}
