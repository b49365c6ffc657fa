//! `make run` in a folder of its own, started and stopped as a developer does.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

use crate::address::random_loopback;
use crate::certificate::Certificate;
use crate::client::{Client, Protocol};
use crate::command::program_path;
use crate::process::Process;
use crate::wait;

/// Files of the project that `make run` needs beside the programs.
const FILES: [&str; 6] = [
    "Makefile",
    "demo/gateway.yml",
    "demo/server.py",
    "docker/self-signed-certificate.sh",
    "scripts/packages",
    "scripts/run",
];
/// Last line that `make run` prints when everything responds.
const READY: &str = "Ctrl-C stops it.";
/// Ports of one `make run`: of the gateway, the demonstration, and two replicas. As `scripts/run` has it, metrics of
/// a replica are on its port plus 1000.
const HTTPS: u16 = 0;
const ADMIN: u16 = 1;
const DEMO: u16 = 2;
const AUTH_API: u16 = 3;
const PORTS: [u16; 7] = [HTTPS, ADMIN, DEMO, AUTH_API, 4, 1003, 1004];
/// Ports below those that the kernel gives to clients.
const FIRST_PORT: u16 = 20_000;
const PORT_RANGE: u16 = 10_000;

/// Folder with what `make run` needs, and ports that it may use.
#[derive(Debug)]
pub struct MakeRunFolder {
    folder: TempDir,
    /// The ports are this one plus each of [`PORTS`].
    first_port: u16,
}

impl MakeRunFolder {
    /// Copies the project's files into a new folder.
    ///
    /// # Errors
    /// Returns an error if a file cannot be copied.
    pub fn new() -> Result<Self> {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let folder = tempfile::Builder::new().prefix("make-run-").tempdir()?;
        for file in FILES {
            let copy = folder.path().join(file);
            fs::create_dir_all(copy.parent().context("a file is in a folder")?)?;
            fs::copy(project.join(file), copy).with_context(|| format!("copying {file}"))?;
        }
        Ok(Self {
            folder,
            first_port: unused_ports(),
        })
    }

    /// Starts `make run` without waiting.
    ///
    /// # Errors
    /// Returns an error if there is no `make`.
    pub fn spawn(&self) -> Result<MakeRun> {
        let programs = program_path("gateway");
        let programs = programs.parent().context("a program is in a folder")?;
        let port = |offset: u16| (self.first_port + offset).to_string();
        // Unlike SIGKILL, SIGTERM reaches what make has started.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", "--", "make", "run"])
            .current_dir(self.folder.path())
            .process_group(0)
            .env_clear()
            .envs(["HOME", "PATH"].map(|name| (name, std::env::var_os(name).unwrap_or_default())))
            .env("PROGRAMS", programs)
            .env("HTTPS_PORT", port(HTTPS))
            .env("GATEWAY_ADMIN", format!("127.0.0.1:{}", port(ADMIN)))
            .env("DEMO_PORT", port(DEMO))
            .env("AUTH_API_PORT", port(AUTH_API))
            .env("BCRYPT_COST", "4");
        // Each start has a log of its own.
        let log = tempfile::NamedTempFile::new_in(self.folder.path())?.into_temp_path();
        Ok(MakeRun {
            process: Process::start("make run", &mut command, &log.keep()?)?,
        })
    }

    /// Starts `make run` and waits until everything responds.
    ///
    /// # Errors
    /// Returns an error with its output if it ends or does not respond in time.
    pub async fn start(&self) -> Result<MakeRun> {
        let mut run = self.spawn()?;
        wait::until("make run", async || {
            let log = run.process.log();
            log.contains(READY) || log.contains("make run: ")
        })
        .await?;
        run.process.ensure_running()?;
        Ok(run)
    }

    /// Returns a client of the gateway.
    ///
    /// # Errors
    /// Returns an error before the certificate is created.
    pub fn client(&self) -> Result<Client> {
        let cert_file = self.folder.path().join(".ssl/cert.pem");
        let certificate = Certificate {
            pem: fs::read_to_string(&cert_file)?,
            key_file: self.folder.path().join(".ssl/key.pem"),
            cert_file,
        };
        let gateway = SocketAddr::from((Ipv4Addr::LOCALHOST, self.first_port + HTTPS));
        Client::new(
            gateway,
            &certificate,
            random_loopback(),
            Protocol::Negotiated,
        )
    }

    /// Returns the processes that work in the folder, with their command lines.
    ///
    /// # Errors
    /// Returns an error if processes cannot be listed.
    pub fn processes(&self) -> Result<Vec<(Pid, String)>> {
        let mut processes = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let process = entry?.path();
            if fs::read_link(process.join("cwd")).is_ok_and(|folder| folder == self.folder.path()) {
                let id = process
                    .file_name()
                    .and_then(|name| name.to_str()?.parse().ok());
                let command = fs::read_to_string(process.join("cmdline")).unwrap_or_default();
                let id = id.and_then(Pid::from_raw);
                processes.push((
                    id.context("a process has an id")?,
                    command.trim_end_matches('\0').replace('\0', " "),
                ));
            }
        }
        Ok(processes)
    }

    /// Sends SIGKILL to the process whose command line ends with `text`.
    ///
    /// # Errors
    /// Returns an error if there is no such process.
    pub fn kill(&self, text: &str) -> Result<()> {
        let processes = self.processes()?;
        let process = processes
            .iter()
            .find(|(_, command)| command.ends_with(text));
        let (id, _) = process.with_context(|| format!("no process is {text}: {processes:?}"))?;
        kill_process(*id, Signal::KILL).with_context(|| format!("killing {text}"))
    }
}

/// `make run`. Dropping the value stops everything that it has started.
#[derive(Debug)]
pub struct MakeRun {
    pub process: Process,
}

impl MakeRun {
    /// Sends what Ctrl-C sends, to all processes of the terminal's foreground, and waits for the end.
    ///
    /// # Errors
    /// Returns an error if it does not end in time.
    pub fn interrupt(&mut self) -> Result<ExitStatus> {
        self.signal_group(Signal::INT)?;
        self.process.wait_for_exit()
    }

    fn signal_group(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.process.id())
            .ok()
            .and_then(Pid::from_raw);
        kill_process_group(id.context("invalid process id")?, signal)
            .context("sending a signal to make run")
    }
}

impl Drop for MakeRun {
    fn drop(&mut self) {
        if self.process.is_running() {
            let _ = self.signal_group(Signal::TERM);
            let _ = self.process.wait_for_exit();
        }
    }
}

/// Returns the first of unused ports. `make run` binds 127.0.0.1, so that only ports distinguish parallel tests.
fn unused_ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let is_unused = |port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
    let of_process = u16::try_from(std::process::id() % u32::from(PORT_RANGE)).unwrap_or_default();
    loop {
        let offset = of_process.wrapping_add(NEXT.fetch_add(10, Ordering::Relaxed)) % PORT_RANGE;
        let first = FIRST_PORT + offset;
        if PORTS.iter().all(|port| is_unused(first + port)) {
            return first;
        }
    }
}
