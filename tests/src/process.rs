//! A program that runs for as long as a value lives.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// A running program. It is killed when the value is dropped, and by the kernel when the
/// thread that started it dies.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with everything that it prints going to the file `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let out = file(log)?;
        Self::start_printing(name, command, out.into(), log)
    }

    /// [`Process::start`] with standard output going elsewhere.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_printing(
        name: &str,
        command: &mut Command,
        output: Stdio,
        log: &Path,
    ) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(file(log)?)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All that the program has printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Bytes that it has in memory.
    ///
    /// # Errors
    /// When the program is gone.
    pub fn memory(&self) -> Result<u64> {
        self.status("VmRSS:")
    }

    /// The most bytes that it ever had in memory.
    ///
    /// # Errors
    /// When the program is gone.
    pub fn peak_memory(&self) -> Result<u64> {
        self.status("VmHWM:")
    }

    /// What the kernel tells in KiB, in bytes.
    fn status(&self, name: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"));
        Ok(kib
            .with_context(|| format!("{name} of {}", self.name))?
            .parse::<u64>()?
            << 10)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the program is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("a process id")?;
        kill_process(pid, signal).with_context(|| format!("signalling {}", self.name))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it does not within [`wait::PATIENCE`].
    pub fn ended(&mut self) -> Result<ExitStatus> {
        let start = std::time::Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > wait::PATIENCE {
                bail!("{} did not end; it printed:\n{}", self.name, self.log());
            }
            std::thread::sleep(wait::PAUSE);
        }
    }

    /// Asks it to end by SIGTERM and waits for that.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.ended()
    }

    /// An error that says what the program printed when it should run and does not.
    ///
    /// # Errors
    /// When it has ended.
    pub fn must_run(&mut self) -> Result<()> {
        if self.is_running() {
            return Ok(());
        }
        bail!("{} ended; it printed:\n{}", self.name, self.log())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file that grows.
fn file(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

/// Sends a signal to a program and its children: PostgreSQL serves each connection by one.
///
/// # Errors
/// When processes cannot be listed.
pub fn signal_family(leader: u32, signal: Signal) -> Result<()> {
    for entry in std::fs::read_dir("/proc")? {
        let folder = entry?.path();
        let status = std::fs::read_to_string(folder.join("status")).unwrap_or_default();
        let is_family = status
            .lines()
            .any(|line| line == format!("PPid:\t{leader}") || line == format!("Pid:\t{leader}"));
        let name = folder.file_name().and_then(OsStr::to_str);
        let pid = name.and_then(|name| name.parse().ok());
        if let Some(pid) = pid.filter(|_| is_family).and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }
    Ok(())
}

/// A command that ends with the thread that starts it, whatever that dies of.
#[must_use]
pub fn bound(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// [`bound`], and as an ordinary user where we are root: PostgreSQL refuses to run as root.
#[must_use]
pub fn bound_and_unprivileged(program: impl AsRef<OsStr>) -> Command {
    if !rustix::process::geteuid().is_root() {
        return bound(program);
    }
    let mut command = Command::new("setpriv");
    let (user, group) = UNPRIVILEGED;
    command
        .args(["--reuid", user, "--regid", group, "--clear-groups"])
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program);
    command
}

/// A user and group that every Debian and Ubuntu has.
pub(crate) const UNPRIVILEGED: (&str, &str) = ("nobody", "nogroup");

/// Where the project's programs are, if not beside this one: what is measured is a release build.
const PROGRAMS: &str = "TEST_PROGRAMS";

/// The path of one of the project's own programs, built beside this one.
///
/// # Panics
/// When it is not built: `scripts/test` does that first.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os(PROGRAMS) {
        return PathBuf::from(folder).join(name);
    }
    let this = std::env::current_exe().expect("a program knows its own path");
    let path = this
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    path.unwrap_or_else(|| panic!("{name} is not built: cargo build --bins"))
}
