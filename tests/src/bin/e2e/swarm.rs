//! The stack of `docker/stack` on a Swarm of one node: updates, rollbacks, and faults after which it has to serve
//! again without an operator.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::deployment::{Deployment, Service};
use crate::docker::Docker;
use crate::images;
use crate::wait::until;

const STACK: &str = "auth";
const DEPLOY: &str = "docker/stack";
/// Address at which the node would be reached by others.
const ADDRESS: &str = "192.0.2.1";
/// Longest time for a task to be replaced: the Swarm waits 5 seconds, then for a first health check.
const RESTART_TIMEOUT: Duration = Duration::from_mins(2);
/// More than the nine health checks after which the Swarm replaces a task that fails them, with 10 seconds between.
const HEALTH_CHECKS: Duration = Duration::from_secs(130);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SwarmStep {
    Update,
    Rollback,
    UpdateToExitingProgram,
    Correct,
    RotateKey,
    KillTasks,
    PostgresAway,
}

impl SwarmStep {
    /// All steps, in the order in which they are carried out.
    pub(crate) const ALL: [Self; 7] = [
        Self::Update,
        Self::Rollback,
        Self::UpdateToExitingProgram,
        Self::Correct,
        Self::RotateKey,
        Self::KillTasks,
        Self::PostgresAway,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Update => "update of auth-api",
            Self::Rollback => "docker service rollback of auth-api",
            Self::UpdateToExitingProgram => {
                "update of auth-api to an image that exits, which the Swarm rolls back"
            }
            Self::Correct => "deployment of the former image after that",
            Self::RotateKey => "rotation of the secret key, step 1",
            Self::KillTasks => "the process of each task is killed",
            Self::PostgresAway => {
                "PostgreSQL is away for longer than a task may fail its health checks"
            }
        }
    }

    /// Returns true if a step replaces replicas of auth-api only, so that no request may fail.
    pub(crate) fn is_seamless(self) -> bool {
        !matches!(self, Self::KillTasks | Self::PostgresAway)
    }

    pub(crate) fn carry_out(self, deployment: &Deployment) -> Result<()> {
        let docker = deployment.docker();
        match self {
            Self::Update => {
                deployment.set("AUTH_API_IMAGE", &images::tag("auth-api", 2))?;
                deploy(deployment)?;
                expect_image(&docker, &images::tag("auth-api", 2))
            }
            Self::Rollback => {
                let service = service_name(Service::AuthApi);
                docker.output(&["service", "rollback", "--quiet", &service])?;
                deployment.set("AUTH_API_IMAGE", &images::tag("auth-api", 1))?;
                expect_image(&docker, &images::tag("auth-api", 1))
            }
            Self::UpdateToExitingProgram => {
                deployment.set("AUTH_API_IMAGE", "auth-api-exits:e2e")?;
                deployment.run_failing_script(DEPLOY, "rollback_completed")?;
                expect_image(&docker, &images::tag("auth-api", 1))
            }
            Self::Correct => {
                deployment.set("AUTH_API_IMAGE", &images::tag("auth-api", 1))?;
                deploy(deployment)?;
                expect_image(&docker, &images::tag("auth-api", 1))
            }
            Self::RotateKey => {
                fs::write(
                    deployment.path("secrets/secret_key_next"),
                    "the next key of this test, long enough",
                )?;
                deployment.set("SECRET_KEY_VERSION", "2")?;
                deploy(deployment)?;
                let secrets = docker.output(&["secret", "ls", "--format", "{{.Name}}"])?;
                ensure!(secrets.contains("auth_secret_key_next_2"), "{secrets}");
                Ok(())
            }
            Self::KillTasks => kill_tasks(deployment),
            Self::PostgresAway => postgres_away(&docker),
        }
    }
}

/// Makes the daemon a Swarm and deploys the stack, as `docs/operations.md` says.
pub(crate) fn start(deployment: &Deployment) -> Result<()> {
    let docker = deployment.docker();
    docker.output(&["swarm", "init", "--advertise-addr", ADDRESS])?;
    deployment.run_failing_script(DEPLOY, "no node has the databases")?;
    let node = docker.output(&["node", "ls", "--quiet"])?;
    docker.output(&["node", "update", "--label-add", "auth-data=true", &node])?;
    for program in ["gateway", "auth-api"] {
        let setting = format!("{}_IMAGE", program.to_uppercase().replace('-', "_"));
        deployment.set(&setting, &images::tag(program, 1))?;
    }
    deploy(deployment)?;
    for service in [Service::AuthApi, Service::Postgres, Service::Redis] {
        let mode = "{{.Spec.EndpointSpec.Mode}}";
        let mode = docker.output(&[
            "service",
            "inspect",
            "--format",
            mode,
            &service_name(service),
        ])?;
        ensure!(mode == "dnsrr", "{service:?}: {mode}");
    }
    Ok(())
}

/// Removes the stack and ends the Swarm.
pub(crate) fn stop(deployment: &Deployment) -> Result<()> {
    let docker = deployment.docker();
    docker.output(&["stack", "rm", STACK])?;
    until("the tasks to end", RESTART_TIMEOUT, || {
        Ok(docker.output(&["ps", "--quiet"])?.is_empty())
    })?;
    docker.output(&["swarm", "leave", "--force"])?;
    Ok(())
}

/// Returns the state of the last tasks, for an error message.
pub(crate) fn tasks(docker: &Docker) -> String {
    let format = "{{.Name}} {{.Image}} {{.CurrentState}} {{.Error}}";
    docker
        .output(&["stack", "ps", "--no-trunc", "--format", format, STACK])
        .unwrap_or_else(|error| error.to_string())
}

fn deploy(deployment: &Deployment) -> Result<()> {
    deployment.run_script(DEPLOY)
}

fn service_name(service: Service) -> String {
    format!("{STACK}_{}", service.name())
}

/// Returns the ids of the running containers of a service, in order.
fn containers(docker: &Docker, service: Service) -> Result<Vec<String>> {
    let label = format!(
        "label=com.docker.swarm.service.name={}",
        service_name(service)
    );
    let ids = docker.output(&["ps", "--quiet", "--no-trunc", "--filter", &label])?;
    let mut ids: Vec<_> = ids.lines().map(str::to_owned).collect();
    ids.sort();
    Ok(ids)
}

fn expect_image(docker: &Docker, expected: &str) -> Result<()> {
    let containers = containers(docker, Service::AuthApi)?;
    ensure!(containers.len() == 2, "{containers:?}\n{}", tasks(docker));
    for container in containers {
        let image = docker.inspect(&container, "{{.Config.Image}}")?;
        ensure!(image == expected, "{image}");
    }
    Ok(())
}

/// Kills the main process of each task, and waits until each has a successor.
fn kill_tasks(deployment: &Deployment) -> Result<()> {
    let docker = deployment.docker();
    for service in Service::ALL {
        let before = containers(&docker, service)?;
        for container in &before {
            deployment.signal(container, Signal::KILL)?;
        }
        until("new tasks", RESTART_TIMEOUT, || {
            let after = containers(&docker, service)?;
            let replaced = before.iter().all(|old| !after.contains(old));
            Ok(replaced && after.len() == before.len())
        })
        .with_context(|| tasks(&docker))?;
    }
    Ok(())
}

/// Removes PostgreSQL for a time. Replicas of auth-api live without it, so that the Swarm must not replace them.
fn postgres_away(docker: &Docker) -> Result<()> {
    let before = containers(docker, Service::AuthApi)?;
    let scale = |replicas| {
        let scale = format!("{}={replicas}", service_name(Service::Postgres));
        docker.output(&["service", "scale", &scale])
    };
    scale(0)?;
    thread::sleep(HEALTH_CHECKS);
    scale(1)?;
    let after = containers(docker, Service::AuthApi)?;
    ensure!(
        before == after,
        "{before:?} became {after:?}\n{}",
        tasks(docker)
    );
    Ok(())
}
