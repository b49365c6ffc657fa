//! The units of `systemd/` on a host of their own, whose process 1 is systemd, by the commands of
//! `docs/operations.md`.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::Client;
use tests::certificate::Certificate;
use tests::client::Protocol;
use tests::load::Load;
use tests::runbook::Runbook;
use tokio::runtime::Runtime;

use crate::deployment::{Deployment, LOOPBACK};
use crate::docker::Docker;
use crate::wait::until;
use crate::{DURATION_AFTER, DURATION_BEFORE, REQUEST_PAUSE, USERS, check_consistency};
use crate::{images, progress};

const HOST: &str = "systemd-host";
const HTTPS_PORT: u16 = 443;
/// Longest time until the programs serve, after their start or a crash.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// Folder of the operator on the host.
const FOLDER: &str = "/srv/auth";
/// Capabilities of systemd, which sets up the sandbox of a unit, and of what it gives to units.
const CAPABILITIES: [&str; 10] = [
    "SYS_ADMIN",
    "NET_ADMIN",
    "SYS_PTRACE",
    "SYS_NICE",
    "SYS_BOOT",
    "SYS_TIME",
    "SYSLOG",
    "IPC_LOCK",
    "DAC_READ_SEARCH",
    "MKNOD",
];

/// Confinement of containers that systemd cannot set units up in.
const SECURITY_OPTIONS: [&str; 3] = [
    "seccomp=unconfined",
    "apparmor=unconfined",
    "systempaths=unconfined",
];

/// Installs the programs, upgrades them, kills them and reboots the host, and prints a table of the results.
#[expect(clippy::print_stdout, reason = "the table is the program's output")]
pub(crate) fn run(root: &Path, deployment: &Deployment, runtime: &Runtime) -> Result<()> {
    let document = Runbook::parse(include_str!("../../../../docs/operations.md"));
    images::load_systemd(root, &deployment.engine)?;
    progress::report("booting a host with systemd");
    let host = Host::boot(root, deployment)?;
    progress::report("installing the units");
    host.run(document.block("useradd")?)?;
    host.run("echo BCRYPT_COST=8 >>/etc/auth-edge/auth-api.env && systemctl restart 'auth-api@*'")?;
    let client = host.client()?;
    let serves = || runtime.block_on(serves(&client));
    until("the programs to serve", START_TIMEOUT, || Ok(serves()))
        .with_context(|| host.status())?;

    println!(
        "| step under systemd | responses by status | failed requests | contradictions |\n|---|---|---|---|"
    );
    for step in Step::ALL {
        let name = step.name();
        progress::report(name);
        let clients = (0..USERS).map(|_| host.client()).collect::<Result<_>>()?;
        let load = runtime.block_on(async { Load::start(clients, REQUEST_PAUSE) });
        thread::sleep(DURATION_BEFORE);
        step.carry_out(&host, &document)
            .with_context(|| format!("{name}\n{}", host.status()))?;
        until("the programs to serve", START_TIMEOUT, || Ok(serves()))
            .with_context(|| format!("{name}\n{}", host.status()))?;
        thread::sleep(DURATION_AFTER);
        let report = runtime.block_on(load.finish());
        println!(
            "| {name} | {} | {} | {} |",
            report.status_summary(),
            report.failed_requests(),
            report.contradictions.len()
        );
        check_consistency(name, &report, 0)?;
        ensure!(
            !step.is_seamless() || report.failed_requests() == 0,
            "{name}: {}\n{}",
            report.status_summary(),
            host.status()
        );
    }
    progress::report("reading the audit log from a namespace of journald");
    host.expect_audit_events(&document, &client, runtime)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    UpgradeToGreen,
    UpgradeToBlue,
    Kill,
    StartWithoutPredecessor,
    Reboot,
}

impl Step {
    /// All steps, in the order in which they are carried out.
    const ALL: [Self; 5] = [
        Self::UpgradeToGreen,
        Self::UpgradeToBlue,
        Self::Kill,
        Self::StartWithoutPredecessor,
        Self::Reboot,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::UpgradeToGreen => "upgrade from gateway@blue to gateway@green",
            Self::UpgradeToBlue => "upgrade back to gateway@blue",
            Self::Kill => "both programs are killed",
            Self::StartWithoutPredecessor => {
                "the gateway is stopped, and its other instance starts without it"
            }
            Self::Reboot => "the host reboots",
        }
    }

    /// Returns true if no request may fail in a step.
    fn is_seamless(self) -> bool {
        matches!(self, Self::UpgradeToGreen | Self::UpgradeToBlue)
    }

    fn carry_out(self, host: &Host, document: &Runbook) -> Result<()> {
        match self {
            Self::UpgradeToGreen => {
                host.run(document.block("--signal=QUIT")?)?;
                host.expect_active("gateway@green", "gateway@blue")
            }
            Self::UpgradeToBlue => {
                host.run(document.block("--signal=QUIT")?)?;
                host.expect_active("gateway@blue", "gateway@green")
            }
            Self::Kill => host.kill_all(),
            Self::StartWithoutPredecessor => {
                host.run("systemctl stop gateway@blue; systemctl start gateway@green")?;
                host.expect_active("gateway@green", "gateway@blue")
            }
            Self::Reboot => host.reboot(),
        }
    }
}

async fn serves(client: &Client) -> bool {
    let registered = client.register("first").await;
    let logged_in = client.login("first").await;
    registered.is_ok() && logged_in.is_ok_and(|response| response.status == 200)
}

/// A container with systemd as process 1, in the network of the test. Dropping it ends it.
struct Host {
    docker: Docker,
}

impl Host {
    fn boot(root: &Path, deployment: &Deployment) -> Result<Self> {
        let docker = deployment.docker();
        let mount = |source: &Path, target: &str| {
            format!("--volume={}:{FOLDER}/{target}:ro", source.display())
        };
        let mounts = [
            mount(&root.join("systemd"), "systemd"),
            mount(&root.join("docker"), "docker"),
            mount(&deployment.path("config/gateway.yml"), "gateway.yml"),
            "--volume=/sys/fs/cgroup:/sys/fs/cgroup".to_owned(),
        ];
        let capabilities = CAPABILITIES.map(|capability| format!("--cap-add={capability}"));
        let mut arguments = vec!["run", "--detach", "--name", HOST, "--network=host"];
        arguments.extend(["--cgroupns=host", "--tmpfs=/run", "--tmpfs=/tmp"]);
        for option in SECURITY_OPTIONS {
            arguments.extend(["--security-opt", option]);
        }
        arguments.extend(mounts.iter().map(String::as_str));
        arguments.extend(capabilities.iter().map(String::as_str));
        arguments.extend(["--workdir", FOLDER, images::SYSTEMD]);
        docker.output(&arguments)?;
        let host = Self { docker };
        host.wait_until_booted()?;
        host.run(&format!(
            "cp /usr/local/bin/gateway /usr/local/bin/auth-api {FOLDER}"
        ))?;
        Ok(host)
    }

    fn wait_until_booted(&self) -> Result<()> {
        until("systemd to boot", START_TIMEOUT, || {
            let state = self.run("systemctl is-system-running || true");
            Ok(state.is_ok_and(|state| ["running", "degraded"].contains(&state.as_str())))
        })
        .with_context(|| self.status())
    }

    fn run(&self, commands: &str) -> Result<String> {
        self.docker.output(&["exec", HOST, "bash", "-c", commands])
    }

    fn client(&self) -> Result<Client> {
        let certificate = Certificate {
            pem: self.run("cat /etc/gateway/tls/cert.pem")?,
            cert_file: PathBuf::new(),
            key_file: PathBuf::new(),
        };
        Client::new(
            (LOOPBACK, HTTPS_PORT).into(),
            &certificate,
            LOOPBACK.into(),
            Protocol::Http1,
        )
    }

    fn expect_active(&self, active: &str, inactive: &str) -> Result<()> {
        self.run(&format!("systemctl is-active {active}"))?;
        let state = self.run(&format!("systemctl is-active {inactive} || true"))?;
        ensure!(state == "inactive", "{inactive} is {state}");
        Ok(())
    }

    fn kill_all(&self) -> Result<()> {
        self.run("systemctl kill --signal=KILL 'gateway@*' 'auth-api@*'")?;
        Ok(())
    }

    /// Reboots with `gateway@blue` enabled: no old process runs then.
    fn reboot(&self) -> Result<()> {
        self.docker.output(&["restart", HOST])?;
        self.wait_until_booted()?;
        self.expect_active("gateway@blue", "gateway@green")
    }

    /// Gives auth-api a namespace of journald, as `docs/operations.md` says, and finds an event in it.
    fn expect_audit_events(
        &self,
        document: &Runbook,
        client: &Client,
        runtime: &Runtime,
    ) -> Result<()> {
        self.run(document.block("LogNamespace=auth")?)?;
        let events = document.block("journalctl --namespace=auth")?;
        until("an audit event in the journal", START_TIMEOUT, || {
            runtime.block_on(serves(client));
            Ok(self
                .run(events)
                .is_ok_and(|events| events.contains("\"event\":\"login\"")))
        })
        .with_context(|| self.status())
    }

    /// Returns the state of the units and the end of the log, for an error message.
    fn status(&self) -> String {
        let commands = "systemctl --no-pager --lines=0 status 'gateway@*' 'auth-api@*'; \
             systemctl --no-pager --failed; journalctl --no-pager --lines=60";
        self.run(&format!("{{ {commands}; }} 2>&1 || true"))
            .unwrap_or_else(|error| error.to_string())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.docker.output(&["rm", "--force", HOST]);
    }
}
