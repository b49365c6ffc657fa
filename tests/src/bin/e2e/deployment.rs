//! A deployment of `compose.prod.yml` in a folder of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tests::certificate::Certificate;
use tests::client::{Client, HOST, Protocol};

use crate::docker;

const COMPOSE_PROJECT: &str = "auth-edge-e2e";
const HTTPS_PORT: u16 = 18_443;
const HTTP_PORT: u16 = 18_080;

/// Files that an operator copies to the host.
const FILES: [&str; 11] = [
    "compose.prod.yml",
    ".prod.env.example",
    "gateway.yml",
    "docker/prepare.sh",
    "docker/compose",
    "docker/containers.sh",
    "docker/pull-image.sh",
    "docker/roll-auth-api.sh",
    "docker/self-signed-certificate.sh",
    "docker/upgrade-gateway.sh",
    "docker/wait-until-ready.sh",
];

/// A deployment with ports and a certificate of its own. Dropping the value removes its containers
/// and volumes.
pub(crate) struct Deployment {
    folder: TempDir,
    certificate: Certificate,
}

impl Deployment {
    /// Builds two versions of each image and prepares the deployment's files, without starting it.
    pub(crate) fn prepare(root: &Path) -> Result<Self> {
        for program in ["gateway", "auth-api"] {
            for version in [1, 2] {
                let (tag, label) = (format!("{program}:e2e-{version}"), format!("e2e={version}"));
                docker::build_image(root, program, &tag, &label)?;
            }
        }
        let folder = tempfile::Builder::new().prefix("e2e-").tempdir()?;
        fs::create_dir(folder.path().join("docker"))?;
        for file in FILES {
            fs::copy(root.join(file), folder.path().join(file))
                .with_context(|| format!("copying {file}"))?;
        }
        let ssl_folder = folder.path().join("ssl");
        fs::create_dir(&ssl_folder)?;
        let certificate = Certificate::generate(&ssl_folder, "cert", &[HOST, "127.0.0.1"])?;
        fs::rename(&certificate.key_file, ssl_folder.join("key.pem"))?;
        let deployment = Self {
            folder,
            certificate,
        };
        fs::set_permissions(deployment.folder.path(), fs::Permissions::from_mode(0o755))?;
        deployment.run_script("docker/prepare.sh")?;
        deployment.raise_quota()?;
        for (name, value) in [
            ("HTTPS_PORT", HTTPS_PORT.to_string()),
            ("HTTP_PORT", HTTP_PORT.to_string()),
            ("GATEWAY_IMAGE", "gateway:e2e-1".to_owned()),
            ("AUTH_API_IMAGE", "auth-api:e2e-1".to_owned()),
        ] {
            deployment.set(name, &value)?;
        }
        Ok(deployment)
    }

    /// Raises the quota of a client: the whole load comes from one address.
    fn raise_quota(&self) -> Result<()> {
        let config_file = self.folder.path().join("config/gateway.yml");
        let mut config = fs::read_to_string(&config_file)?;
        for quota in ["quota: 100 ", "quota: 60,", "quota: 20,"] {
            config = config.replace(quota, &quota.replace(": ", ": 100000"));
        }
        for burst in ["bucket_size: 10,", "bucket_size: 3,"] {
            config = config.replace(burst, &burst.replace(": ", ": 100000"));
        }
        Ok(fs::write(&config_file, config)?)
    }

    /// Sets a variable in `.prod.env`.
    pub(crate) fn set(&self, name: &str, value: &str) -> Result<()> {
        let file = self.folder.path().join(".prod.env");
        let text = fs::read_to_string(&file)?;
        let prefix = format!("{name}=");
        let lines = text.lines().map(|line| {
            if line.starts_with(&prefix) {
                format!("{prefix}{value}")
            } else {
                line.to_owned()
            }
        });
        let lines: Vec<_> = lines.collect();
        Ok(fs::write(file, lines.join("\n") + "\n")?)
    }

    pub(crate) fn client(&self) -> Result<Client> {
        Client::new(
            ([127, 0, 0, 1], HTTPS_PORT).into(),
            &self.certificate,
            [127, 0, 0, 1].into(),
            Protocol::Http1,
        )
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.folder.path().join(program));
        command
            .env("COMPOSE_PROJECT_NAME", COMPOSE_PROJECT)
            .current_dir(self.folder.path());
        command
    }

    pub(crate) fn run_script(&self, script: &str) -> Result<()> {
        docker::run(&mut self.command(script))
    }

    /// Runs Docker Compose on the deployment.
    pub(crate) fn compose(&self, arguments: &[&str]) -> Result<()> {
        docker::run(self.command("docker/compose").args(arguments))
    }

    /// Sets the number of replicas of auth-api.
    pub(crate) fn scale_auth_api(&self, replicas: usize) -> Result<()> {
        let scale = format!("auth-api={replicas}");
        self.compose(&["up", "-d", "--no-recreate", "--scale", &scale, "auth-api"])
    }

    /// Returns the last log lines of all containers.
    pub(crate) fn logs(&self) -> String {
        let output = self
            .command("docker/compose")
            .args(["logs", "--tail", "30"])
            .output();
        output.map_or_else(
            |error| error.to_string(),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }

    /// Returns the ids of a service's containers.
    fn containers(&self, service: &str) -> Result<Vec<String>> {
        let output = self
            .command("docker/compose")
            .args(["ps", "-q", service])
            .output()?;
        Ok(String::from_utf8(output.stdout)?
            .lines()
            .map(str::to_owned)
            .collect())
    }

    /// Kills a replica of auth-api, which simulates a crash: Docker restarts it.
    pub(crate) fn kill_replica(&self) -> Result<()> {
        let replicas = self.containers("auth-api")?;
        let container = replicas.first().context("auth-api has no container")?;
        let pid = docker::container_pid(container)?;
        let pid = Pid::from_raw(pid).with_context(|| format!("{container} does not run"))?;
        Ok(kill_process(pid, Signal::KILL)?)
    }

    /// Returns a Markdown table with the memory usage of each container.
    pub(crate) fn memory_table(&self) -> Result<String> {
        let mut table = String::from("| container | memory |\n|---|---|\n");
        for service in ["gateway", "auth-api", "postgres", "redis"] {
            for container in self.containers(service)? {
                table.push_str(&docker::memory_row(&container)?);
                table.push('\n');
            }
        }
        Ok(table)
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        let _ = self.compose(&["down", "--volumes", "--timeout", "5"]);
    }
}
