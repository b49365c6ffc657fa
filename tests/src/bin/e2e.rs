//! The production deployment on this machine's Docker Engine, under load, through everything that an
//! operator does to it: `make e2e`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tests::certificate::Certificate;
use tests::client::{Client, Protocol};
use tests::load::{Load, Tally};
use tests::wait;

const PROJECT: &str = "auth-edge-e2e";
const HTTPS_PORT: u16 = 18_443;
const PEOPLE: usize = 8;
const PAUSE: Duration = Duration::from_millis(50);
/// How long people are at it once what an operator did is done.
const AFTERWARDS: Duration = Duration::from_secs(4);

fn main() -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()?;
    ensure!(
        Command::new("docker")
            .arg("info")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success()),
        "make e2e: there is no Docker Engine that answers (`docker info`)"
    );
    let deployment = Deployment::prepare(&root)?;
    tokio::runtime::Runtime::new()?.block_on(run(&deployment))
}

#[expect(clippy::print_stdout, reason = "the table is what it is for")]
async fn run(deployment: &Deployment) -> Result<()> {
    deployment.compose(&["up", "-d"])?;
    let client = deployment.client()?;
    wait::until("the edge to answer", async || {
        client
            .get("/health")
            .await
            .is_ok_and(|answer| answer.status == 200)
            && client
                .register("first")
                .await
                .is_ok_and(|answer| [201, 409].contains(&answer.status))
    })
    .await
    .with_context(|| deployment.logs())?;

    println!("| image | size |\n|---|---|");
    for image in ["gateway", "auth-api"] {
        let size: f64 = output(
            "docker",
            &[
                "image",
                "inspect",
                "--format",
                "{{.Size}}",
                &format!("{image}:e2e-1"),
            ],
        )?
        .parse()?;
        println!("| {image} | {:.1} MiB |", size / 1024.0 / 1024.0);
    }
    println!("\nAt rest:\n\n{}", deployment.memory()?);

    println!(
        "| what | requests | answers by status | outages and unanswered | wrong | lost accounts | slowest |\n|---|---|---|---|---|---|---|"
    );
    let mut under_load = String::new();
    for step in Step::ALL {
        let load = Load::start(
            (0..PEOPLE)
                .map(|_| deployment.client())
                .collect::<Result<_>>()?,
            PAUSE,
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
        tokio::task::block_in_place(|| step.act(deployment))?;
        tokio::time::sleep(AFTERWARDS).await;
        if step == Step::Nothing {
            under_load = deployment.memory()?;
        }
        let tally = load.end().await;
        let lost = tally.lost(&client).await?;
        println!(
            "| {} | {} | {} | {} | {} | {lost} | {:.2?} |",
            step.name(),
            tally.requests,
            tally.statuses(),
            tally.failures(),
            tally.wrong.len(),
            tally.slowest,
        );
        judge(step, &tally, lost)?;
    }
    println!("\nUnder load:\n\n{under_load}");
    Ok(())
}

/// Nothing may be wrong or lost; outages are for the steps that take something away that there is
/// only one of, and for requests that a killed replica had begun.
fn judge(step: Step, tally: &Tally, lost: usize) -> Result<()> {
    ensure!(
        tally.wrong.is_empty(),
        "{}: {:#?}",
        step.name(),
        tally.wrong
    );
    ensure!(lost == 0, "{}: {lost} accounts are lost", step.name());
    let allowed: &[u16] = match step {
        Step::RestartRedis | Step::RestartPostgres => &[503],
        // What it had begun may have been done: nobody but the client can know whether to ask again.
        Step::KillReplica => &[502],
        _ => &[],
    };
    let unexpected = tally
        .by_status
        .keys()
        .find(|status| **status >= 500 && !allowed.contains(status));
    ensure!(
        unexpected.is_none() && tally.unanswered == 0,
        "{}: {}",
        step.name(),
        tally.statuses()
    );
    if step == Step::KillReplica {
        ensure!(tally.failures() <= PEOPLE as u64, "{}", tally.statuses());
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Nothing,
    ScaleUp,
    ScaleDown,
    KillReplica,
    RestartRedis,
    RestartPostgres,
    RollAuthApi,
    UpgradeGateway,
}

impl Step {
    const ALL: [Self; 8] = [
        Self::Nothing,
        Self::ScaleUp,
        Self::ScaleDown,
        Self::KillReplica,
        Self::RestartRedis,
        Self::RestartPostgres,
        Self::RollAuthApi,
        Self::UpgradeGateway,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing happens",
            Self::ScaleUp => "auth-api from 2 to 4",
            Self::ScaleDown => "auth-api from 4 to 2",
            Self::KillReplica => "a replica is killed",
            Self::RestartRedis => "Redis restarts",
            Self::RestartPostgres => "PostgreSQL restarts",
            Self::RollAuthApi => "auth-api by a new image, one by one",
            Self::UpgradeGateway => "the gateway by a new image",
        }
    }

    fn act(self, deployment: &Deployment) -> Result<()> {
        match self {
            Self::Nothing => std::thread::sleep(AFTERWARDS),
            Self::ScaleUp => deployment.scale(4)?,
            Self::ScaleDown => deployment.scale(2)?,
            Self::KillReplica => deployment.kill_replica()?,
            Self::RestartRedis => deployment.compose(&["restart", "redis"])?,
            Self::RestartPostgres => deployment.compose(&["restart", "postgres"])?,
            Self::RollAuthApi => {
                deployment.set("AUTH_API_IMAGE", "auth-api:e2e-2")?;
                deployment.script("docker/roll-auth-api.sh")?;
            }
            Self::UpgradeGateway => {
                deployment.set("GATEWAY_IMAGE", "gateway:e2e-2")?;
                deployment.script("docker/upgrade-gateway.sh")?;
            }
        }
        Ok(())
    }
}

/// A copy of what an operator has, with ports and a certificate of its own. Taken down when dropped.
struct Deployment {
    folder: TempDir,
    certificate: Certificate,
}

impl Deployment {
    fn prepare(root: &Path) -> Result<Self> {
        for (number, program) in [
            (1, "gateway"),
            (2, "gateway"),
            (1, "auth-api"),
            (2, "auth-api"),
        ] {
            let (tag, label) = (format!("{program}:e2e-{number}"), format!("e2e={number}"));
            let build = [
                "build",
                "--network",
                "host",
                "--target",
                program,
                "--tag",
                &tag,
                "--label",
                &label,
                "--file",
                "docker/Dockerfile",
                ".",
            ];
            done(
                Command::new("docker")
                    .args(build)
                    .current_dir(root)
                    .env("DOCKER_BUILDKIT", buildkit()),
            )?;
        }
        let folder = tempfile::Builder::new().prefix("e2e-").tempdir()?;
        fs::create_dir(folder.path().join("docker"))?;
        for file in [
            "compose.prod.yml",
            ".prod.env.example",
            "gateway.yml",
            "docker/prepare.sh",
            "docker/compose",
            "docker/roll-auth-api.sh",
            "docker/upgrade-gateway.sh",
        ] {
            fs::copy(root.join(file), folder.path().join(file))
                .with_context(|| format!("copying {file}"))?;
        }
        fs::create_dir(folder.path().join("ssl"))?;
        let certificate = Certificate::make(
            &folder.path().join("ssl"),
            "cert",
            &["localhost", "127.0.0.1"],
        )?;
        fs::rename(&certificate.key, folder.path().join("ssl/key.pem"))?;
        let deployment = Self {
            folder,
            certificate,
        };
        fs::set_permissions(deployment.folder.path(), fs::Permissions::from_mode(0o755))?;
        deployment.script("docker/prepare.sh")?;
        // All of the load comes from one address: its quota would be spent in a moment.
        let config = deployment.folder.path().join("config/gateway.yml");
        let text = fs::read_to_string(&config)?;
        fs::write(&config, text.replace("quota: 100 ", "quota: 1000000 "))?;
        for (name, value) in [
            ("HTTPS_PORT", HTTPS_PORT.to_string()),
            ("HTTP_PORT", "18080".to_owned()),
            ("GATEWAY_IMAGE", "gateway:e2e-1".to_owned()),
            ("AUTH_API_IMAGE", "auth-api:e2e-1".to_owned()),
        ] {
            deployment.set(name, &value)?;
        }
        Ok(deployment)
    }

    /// Changes a line of `.prod.env`.
    fn set(&self, name: &str, value: &str) -> Result<()> {
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

    fn client(&self) -> Result<Client> {
        let address = ([127, 0, 0, 1], HTTPS_PORT).into();
        Client::new(
            address,
            &self.certificate,
            [127, 0, 0, 1].into(),
            Protocol::Http1,
        )
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.folder.path().join(program));
        command
            .env("COMPOSE_PROJECT_NAME", PROJECT)
            .current_dir(self.folder.path());
        command
    }

    fn script(&self, script: &str) -> Result<()> {
        done(&mut self.command(script))
    }

    fn compose(&self, arguments: &[&str]) -> Result<()> {
        done(self.command("docker/compose").args(arguments))
    }

    /// Has so many replicas of auth-api.
    fn scale(&self, replicas: usize) -> Result<()> {
        let count = format!("auth-api={replicas}");
        self.compose(&["up", "-d", "--no-recreate", "--scale", &count, "auth-api"])
    }

    fn logs(&self) -> String {
        let output = self
            .command("docker/compose")
            .args(["logs", "--tail", "30"])
            .output();
        output.map_or_else(
            |error| error.to_string(),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }

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

    /// As a crash would: Docker starts it again.
    fn kill_replica(&self) -> Result<()> {
        let replicas = self.containers("auth-api")?;
        let victim = replicas.first().context("a replica")?;
        let pid: i32 =
            output("docker", &["inspect", "--format", "{{.State.Pid}}", victim])?.parse()?;
        kill_process(Pid::from_raw(pid).context("a process")?, Signal::KILL)?;
        Ok(())
    }

    /// What each container takes.
    fn memory(&self) -> Result<String> {
        let mut table = String::from("| container | memory |\n|---|---|\n");
        for service in ["gateway", "auth-api", "postgres", "redis"] {
            for container in self.containers(service)? {
                let line = output(
                    "docker",
                    &[
                        "stats",
                        "--no-stream",
                        "--format",
                        "| {{.Name}} | {{.MemUsage}} |",
                        &container,
                    ],
                )?;
                table.push_str(&line);
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

/// What builds images: the old builder where Docker lacks the new one.
fn buildkit() -> &'static str {
    match output("docker", &["buildx", "version"]) {
        Ok(_) => "1",
        Err(_) => "0",
    }
}

fn done(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output()?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
