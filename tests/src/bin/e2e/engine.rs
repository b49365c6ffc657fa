//! A Docker daemon of this test alone, which it may restart. `scripts/e2e` starts the test in network, mount
//! and process namespaces of its own, so that the daemon's firewall rules, bridges and containers are not the
//! machine's, and end with them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::docker::{self, Docker};
use crate::wait::until;

/// Longest start or stop of the daemon. At its stop it waits for the containers.
const DAEMON_TIMEOUT: Duration = Duration::from_mins(2);

/// The running daemon, with its files in a folder.
pub(crate) struct Engine {
    folder: PathBuf,
    daemon: Child,
}

impl Engine {
    /// Starts a daemon with the storage driver of this machine's, and with control groups whose name is
    /// `cgroup_parent`.
    pub(crate) fn start(folder: &Path, cgroup_parent: &str) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let driver = Docker::of_machine().output(&["info", "--format", "{{.Driver}}"])?;
        let settings = json!({
            "data-root": folder.join("data"),
            "exec-root": folder.join("exec"),
            "pidfile": folder.join("pid"),
            "hosts": [socket(folder)],
            "storage-driver": driver,
            // Not systemd's, which would be that of the machine.
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "cgroup-parent": cgroup_parent,
        });
        fs::write(folder.join("daemon.json"), settings.to_string())?;
        let engine = Self {
            folder: folder.to_owned(),
            daemon: spawn(folder)?,
        };
        engine.wait_until_running()?;
        Ok(engine)
    }

    pub(crate) fn docker(&self) -> Docker {
        Docker::at(socket(&self.folder))
    }

    /// Copies an image of this machine's Docker Engine.
    pub(crate) fn load_image(&self, image: &str) -> Result<()> {
        let mut save = Docker::of_machine()
            .command(&["save", image])
            .stdout(Stdio::piped())
            .spawn()?;
        let archive = save.stdout.take().context("docker save has no output")?;
        let mut load = self.docker().command(&["load", "--quiet"]);
        load.stdin(archive);
        docker::output(&mut load)?;
        ensure!(save.wait()?.success(), "docker save {image} failed");
        Ok(())
    }

    /// Stops the daemon, as at a shutdown of the machine, and starts it.
    pub(crate) fn restart(&mut self) -> Result<()> {
        let pid = Pid::from_child(&self.daemon);
        kill_process(pid, Signal::TERM)?;
        self.daemon.wait()?;
        self.daemon = spawn(&self.folder)?;
        self.wait_until_running()
    }

    fn wait_until_running(&self) -> Result<()> {
        let docker = self.docker();
        until("the Docker daemon", DAEMON_TIMEOUT, || {
            Ok(docker.output(&["version"]).is_ok())
        })
        .with_context(|| self.log())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.daemon), Signal::TERM);
        let _ = self.daemon.wait();
    }
}

fn socket(folder: &Path) -> String {
    format!("unix://{}", folder.join("docker.sock").display())
}

fn spawn(folder: &Path) -> Result<Child> {
    let log = File::options()
        .append(true)
        .create(true)
        .open(folder.join("log"))?;
    Command::new("dockerd")
        .arg("--config-file")
        .arg(folder.join("daemon.json"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting dockerd")
}
