//! A deployment of `compose.prod.yml` in a folder of its own.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tests::certificate::Certificate;
use tests::client::{Client, HOST, Protocol};
use tokio::runtime::Handle;

use crate::docker::{self, Docker};
use crate::engine::Engine;
use crate::images;
use crate::quota;
use crate::small_disk::Store;
use crate::wait::until;

/// Name of the Compose project and of the stack.
pub(crate) const PROJECT: &str = "auth-edge-e2e";
const HTTPS_PORT: u16 = 18_443;
const HTTP_PORT: u16 = 18_080;
/// Port of a gateway's admin listener in its container.
const ADMIN_PORT: u16 = 9901;
/// Addresses of this machine. Docker forwards connections to them in different ways: by its proxy, and by
/// the kernel's address translation.
pub(crate) const LOOPBACK: [u8; 4] = [127, 0, 0, 1];
const PUBLIC: [u8; 4] = [192, 0, 2, 1];
/// User without privileges.
const NOBODY: &str = "65534";
/// Longest wait for Docker to start a container again: the back-off is at most a minute.
const RESTART_TIMEOUT: Duration = Duration::from_secs(90);
/// Longest time for a script to reach the point at which it is killed.
const SCRIPT_TIMEOUT: Duration = Duration::from_mins(2);

/// Files that an operator copies to the host.
const FILES: [&str; 22] = [
    "compose.prod.yml",
    ".prod.env.example",
    "gateway.yml",
    "docker/backup/compose.yml",
    "docker/balancer/compose.yml",
    "docker/balancer/haproxy.cfg",
    "docker/prepare.sh",
    "docker/compose",
    "docker/containers.sh",
    "docker/monitoring/alertmanager.yml",
    "docker/ports.yml",
    "docker/postgres/roles.sh",
    "docker/postgres/superuser-password",
    "docker/pull-image.sh",
    "docker/roll.sh",
    "docker/roll-auth-api.sh",
    "docker/self-signed-certificate.sh",
    "docker/settings.sh",
    "docker/stack",
    "docker/status",
    "docker/upgrade-gateway.sh",
    "docker/wait-until-ready.sh",
];

/// A service of `compose.prod.yml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    Gateway,
    AuthApi,
    Postgres,
    Redis,
}

impl Service {
    pub(crate) const ALL: [Self; 4] = [Self::Gateway, Self::AuthApi, Self::Postgres, Self::Redis];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::AuthApi => "auth-api",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
        }
    }
}

/// A deployment with ports and a certificate of its own. Its mounts end with the namespace of the test.
pub(crate) struct Deployment {
    pub(crate) engine: Engine,
    folder: PathBuf,
    certificate: Certificate,
}

impl Deployment {
    /// Prepares the deployment's files in `folder`, which it creates, without starting it.
    pub(crate) fn prepare(root: &Path, folder: PathBuf, engine: Engine) -> Result<Self> {
        for file in FILES {
            if let Some(parent) = folder.join(file).parent() {
                fs::create_dir_all(parent)?;
            }
            fs::copy(root.join(file), folder.join(file))
                .with_context(|| format!("copying {file}"))?;
        }
        let ssl_folder = folder.join("ssl");
        fs::create_dir(&ssl_folder)?;
        let certificate = Certificate::generate(&ssl_folder, "cert", &[HOST, "127.0.0.1"])?;
        fs::rename(&certificate.key_file, ssl_folder.join("key.pem"))?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        let deployment = Self {
            engine,
            folder,
            certificate,
        };
        deployment.run_script("docker/prepare.sh")?;
        deployment.change_quotas()?;
        for store in Store::ALL {
            store.create_disk(&deployment.folder, &deployment.docker())?;
        }
        for (name, value) in [
            ("HTTPS_PORT", HTTPS_PORT.to_string()),
            ("HTTP_PORT", HTTP_PORT.to_string()),
            ("GATEWAY_IMAGE", images::tag("gateway", 1)),
            ("AUTH_API_IMAGE", images::tag("auth-api", 1)),
            // Hashes at the full cost would keep a small machine busy, and logins would be shed.
            ("BCRYPT_COST", "8".to_owned()),
        ] {
            deployment.set(name, &value)?;
        }
        Ok(deployment)
    }

    /// Returns the folder of the disk of a store.
    pub(crate) fn disk(&self, store: Store) -> PathBuf {
        store.disk(&self.folder)
    }

    /// Raises the quota of a client, since the whole load comes from two addresses, and adds one that operations use.
    fn change_quotas(&self) -> Result<()> {
        let config_file = self.path("config/gateway.yml");
        let mut config = fs::read_to_string(&config_file)?;
        for quota in ["quota: 100 ", "quota: 60,", "quota: 20,"] {
            config = config.replace(quota, &quota.replace(": ", ": 100000"));
        }
        for burst in ["bucket_size: 10,", "bucket_size: 3,"] {
            config = config.replace(burst, &burst.replace(": ", ": 100000"));
        }
        let (before, after) = config
            .split_once("  paths:\n")
            .context("gateway.yml has no paths")?;
        let settings = quota::PATH_SETTINGS;
        Ok(fs::write(
            &config_file,
            format!("{before}  paths:\n{settings}{after}"),
        )?)
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// Sets a variable in `.prod.env`.
    pub(crate) fn set(&self, name: &str, value: &str) -> Result<()> {
        let file = self.path(".prod.env");
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

    pub(crate) fn docker(&self) -> Docker {
        self.engine.docker()
    }

    pub(crate) fn client(&self) -> Result<Client> {
        self.client_at(LOOPBACK)
    }

    /// Returns clients, of which each second one connects to the address that is not loopback.
    pub(crate) fn clients(&self, count: usize) -> Result<Vec<Client>> {
        let addresses = [LOOPBACK, PUBLIC].into_iter().cycle();
        let clients = addresses.take(count);
        clients.map(|address| self.client_at(address)).collect()
    }

    fn client_at(&self, address: [u8; 4]) -> Result<Client> {
        Client::new(
            (address, HTTPS_PORT).into(),
            &self.certificate,
            address.into(),
            Protocol::Http1,
        )
    }

    /// Returns a command in the deployment's folder.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        self.docker().select(&mut command);
        command
            .env("COMPOSE_PROJECT_NAME", PROJECT)
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run_script(&self, script: &str) -> Result<()> {
        docker::output(&mut self.command(script))?;
        Ok(())
    }

    /// Runs commands of a shell and returns what they print.
    pub(crate) fn run_shell(&self, commands: &str) -> Result<String> {
        docker::output(
            self.command("bash")
                .args(["-euo", "pipefail", "-c", commands]),
        )
    }

    /// Runs commands of a document as root.
    pub(crate) fn run_commands(&self, commands: &[String]) -> Result<()> {
        for command in commands {
            // It would not pass on which Docker daemon to use.
            self.run_shell(&command.replace("sudo ", ""))?;
        }
        Ok(())
    }

    /// Starts a script, and kills it and the commands that it runs as soon as `condition` holds.
    pub(crate) fn kill_script(
        &self,
        script: &str,
        mut condition: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let mut command = self.command(script);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.process_group(0).spawn()?;
        let group = Pid::from_child(&child);
        let reached = until(
            "the point at which a script is killed",
            SCRIPT_TIMEOUT,
            || {
                ensure!(
                    child.try_wait()?.is_none(),
                    "{script} ended before it was killed"
                );
                condition()
            },
        );
        let killed = kill_process_group(group, Signal::KILL);
        child.wait()?;
        reached?;
        Ok(killed?)
    }

    /// Runs a script that has to fail and name the reason.
    pub(crate) fn run_failing_script(&self, script: &str, reason: &str) -> Result<()> {
        expect_failure(&mut self.command(script), reason)
    }

    /// Runs a script as a user without privileges, which has to fail and name the reason.
    pub(crate) fn run_failing_script_as_user(&self, script: &str, reason: &str) -> Result<()> {
        let mut command = self.command("setpriv");
        command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"]);
        expect_failure(command.arg(script), reason)
    }

    /// Runs Docker Compose on the deployment.
    pub(crate) fn compose(&self, arguments: &[&str]) -> Result<()> {
        docker::output(self.command("docker/compose").args(arguments))?;
        Ok(())
    }

    /// Sets the number of replicas of auth-api.
    pub(crate) fn scale_auth_api(&self, replicas: usize) -> Result<()> {
        self.set("AUTH_API_REPLICAS", &replicas.to_string())?;
        self.compose(&["up", "-d", "--no-recreate", "auth-api"])
    }

    /// Returns the last log lines of all containers.
    pub(crate) fn logs(&self) -> String {
        let output = self
            .command("docker/compose")
            .args(["logs", "--tail", "30"])
            .output();
        output.map_or_else(|error| error.to_string(), |output| docker::text(&output))
    }

    /// Returns a metric of a gateway.
    pub(crate) fn gateway_metric(&self, gateway: &str, name: &str, labels: &[&str]) -> Result<f64> {
        let addresses = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}";
        let addresses = self.docker().inspect(gateway, addresses)?;
        let address = addresses.split(' ').next().context("no address")?;
        let address = SocketAddr::new(address.parse::<IpAddr>()?, ADMIN_PORT);
        let client = Client::cleartext(address)?;
        let value = Handle::current().block_on(client.metric(name, labels))?;
        value.with_context(|| format!("{gateway} has no metric {name}"))
    }

    /// Returns the ids of a service's containers, running or not, in order.
    pub(crate) fn containers(&self, service: Service) -> Result<Vec<String>> {
        let project = format!("label=com.docker.compose.project={PROJECT}");
        let service = format!("label=com.docker.compose.service={}", service.name());
        let arguments = ["ps", "--all", "--quiet", "--no-trunc", "--filter"];
        // Not those of `docker/compose run`.
        let kind = ["--filter", "label=com.docker.compose.oneoff=False"];
        let arguments = [&arguments[..], &[&project, "--filter", &service], &kind].concat();
        let mut ids: Vec<_> = self
            .docker()
            .output(&arguments)?
            .lines()
            .map(str::to_owned)
            .collect();
        ids.sort();
        Ok(ids)
    }

    /// Returns the image's name of each of a service's containers.
    pub(crate) fn images(&self, service: Service) -> Result<Vec<String>> {
        let docker = self.docker();
        let image = |id: &String| docker.inspect(id, "{{.Config.Image}}");
        self.containers(service)?.iter().map(image).collect()
    }

    /// Returns the image's id of each of a service's containers.
    pub(crate) fn image_ids(&self, service: Service) -> Result<Vec<String>> {
        let docker = self.docker();
        let image = |id: &String| docker.inspect(id, "{{.Image}}");
        self.containers(service)?.iter().map(image).collect()
    }

    /// Returns true if the program in a container can serve requests.
    pub(crate) fn is_ready(&self, container: &str, program: &str) -> bool {
        let program = format!("/usr/local/bin/{program}");
        let check = ["exec", container, &program, "healthcheck", "--ready"];
        self.docker().output(&check).is_ok()
    }

    /// Sends a signal to the main process of a container, which simulates a crash: Docker restarts it.
    pub(crate) fn signal(&self, container: &str, signal: Signal) -> Result<()> {
        Ok(kill_process(self.main_process(container)?, signal)?)
    }

    /// Waits until a container runs, and returns its main process.
    pub(crate) fn main_process(&self, container: &str) -> Result<Pid> {
        let (docker, mut process) = (self.docker(), None);
        until("a container to run", RESTART_TIMEOUT, || {
            let pid = docker.inspect(container, "{{.State.Pid}}")?.parse()?;
            process = Pid::from_raw(pid);
            Ok(process.is_some())
        })
        .with_context(|| {
            let state = docker.inspect(
                container,
                "{{.Name}} {{.State.Status}} restarts={{.RestartCount}}",
            );
            state.unwrap_or_else(|error| error.to_string())
        })?;
        process.context("the container does not run")
    }

    /// Kills a replica of auth-api.
    pub(crate) fn kill_replica(&self) -> Result<()> {
        let replicas = self.containers(Service::AuthApi)?;
        let container = replicas.first().context("auth-api has no container")?;
        self.signal(container, Signal::KILL)
    }

    /// Returns a Markdown table with the memory usage of each container.
    pub(crate) fn memory_table(&self) -> Result<String> {
        let mut table = String::from("| container | memory |\n|---|---|\n");
        for service in Service::ALL {
            for container in self.containers(service)? {
                table.push_str(&self.docker().memory_row(&container)?);
                table.push('\n');
            }
        }
        Ok(table)
    }
}

/// Runs a command that has to fail and print `reason`.
fn expect_failure(command: &mut Command, reason: &str) -> Result<()> {
    let output = command.output()?;
    let text = docker::text(&output);
    ensure!(!output.status.success(), "{command:?} succeeded: {text}");
    ensure!(
        text.contains(reason),
        "{command:?} does not say `{reason}`: {text}"
    );
    Ok(())
}
