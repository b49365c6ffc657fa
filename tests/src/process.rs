//! A child process that runs no longer than the value that owns it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

use crate::wait;

/// A running child process. Dropping the value kills it; a process of a
/// [`bound_command`](crate::command::bound_command) is also killed when the thread that started it
/// dies.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log_file: PathBuf,
}

impl Process {
    /// Starts `command` with standard output and standard error appended to `log_file`.
    ///
    /// # Errors
    /// Returns an error if the process cannot be started.
    pub fn start(name: &str, command: &mut Command, log_file: &Path) -> Result<Self> {
        let stdout = open_for_appending(log_file)?;
        Self::start_with_stdout(name, command, stdout.into(), log_file)
    }

    /// Like [`Process::start`], with standard output going to `stdout` instead.
    ///
    /// # Errors
    /// Returns an error if the process cannot be started.
    pub fn start_with_stdout(
        name: &str,
        command: &mut Command,
        stdout: Stdio,
        log_file: &Path,
    ) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(open_for_appending(log_file)?)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log_file: log_file.to_owned(),
        })
    }

    /// Returns the process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the content of the log file so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log_file).unwrap_or_default()
    }

    /// Returns the resident memory, in bytes.
    ///
    /// # Errors
    /// Returns an error if the process has exited.
    pub fn resident_memory(&self) -> Result<u64> {
        self.memory_status("VmRSS:")
    }

    /// Returns the peak resident memory, in bytes.
    ///
    /// # Errors
    /// Returns an error if the process has exited.
    pub fn peak_resident_memory(&self) -> Result<u64> {
        self.memory_status("VmHWM:")
    }

    /// Returns a value of `/proc/PID/status` that is in KiB there, in bytes.
    fn memory_status(&self, key: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB"));
        Ok(kib
            .with_context(|| format!("{} has no {key} in /proc/PID/status", self.name))?
            .parse::<u64>()?
            << 10)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// Returns an error if the process has exited.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid()?, signal)
            .with_context(|| format!("sending a signal to {}", self.name))
    }

    /// Limits the size of files that the process may write, in bytes, or lifts the limit. Writes beyond
    /// it fail, as on a full disk; files that are larger already stay as they are.
    ///
    /// # Errors
    /// Returns an error if the process has exited.
    pub fn limit_file_size(&self, limit: Option<u64>) -> Result<()> {
        let limit = Rlimit {
            current: limit,
            maximum: None,
        };
        prlimit(Some(self.pid()?), Resource::Fsize, limit).context("limiting the size of files")?;
        Ok(())
    }

    /// Returns the user and system time of the process so far, with a resolution of 10 ms.
    ///
    /// # Errors
    /// Returns an error if the process has exited.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name, in parentheses, may contain spaces; utime and stime are fields 14 and 15
        // (proc_pid_stat(5)), 11 and 12 after it, in ticks of 10 ms.
        let (_, after_name) = stat.rsplit_once(") ").context("invalid stat file")?;
        let mut ticks = 0_u64;
        for field in after_name.split(' ').skip(11).take(2) {
            ticks += field.parse::<u64>()?;
        }
        Ok(Duration::from_millis(10 * ticks))
    }

    fn pid(&self) -> Result<Pid> {
        i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("invalid process id")
    }

    /// Returns true while the process runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Returns an error with the log if the process has exited.
    ///
    /// # Errors
    /// Returns an error if the process has exited.
    pub fn ensure_running(&mut self) -> Result<()> {
        if self.is_running() {
            return Ok(());
        }
        bail!("{} has exited; its log:\n{}", self.name, self.log())
    }

    /// Blocks until `is_ready` returns true.
    ///
    /// # Errors
    /// Returns an error with the log if the process exits before.
    pub(crate) fn wait_until_ready(&mut self, is_ready: impl Fn() -> bool) -> Result<()> {
        while self.is_running() && !is_ready() {
            std::thread::sleep(wait::POLL_INTERVAL);
        }
        self.ensure_running()
    }

    /// Blocks until the process accepts TCP connections at `address`.
    ///
    /// # Errors
    /// Returns an error with the log if the process exits before.
    pub fn wait_until_listening(&mut self, address: SocketAddr) -> Result<()> {
        self.wait_until_ready(|| TcpStream::connect(address).is_ok())
    }

    /// Blocks until the process exits by itself.
    ///
    /// # Errors
    /// Returns an error with the log if it does not exit within [`wait::TIMEOUT`].
    pub fn wait_for_exit(&mut self) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > wait::TIMEOUT {
                bail!("{} did not exit; its log:\n{}", self.name, self.log());
            }
            std::thread::sleep(wait::POLL_INTERVAL);
        }
    }

    /// Waits until the log contains `text`.
    ///
    /// # Errors
    /// Returns an error after [`wait::TIMEOUT`].
    pub async fn wait_for_log(&self, text: &str) -> Result<()> {
        wait::until(
            &format!("{text:?} in the log of {}", self.name),
            async || self.log().contains(text),
        )
        .await
    }

    /// Sends SIGTERM and blocks until the process exits.
    ///
    /// # Errors
    /// Returns an error with the log if it does not exit within [`wait::TIMEOUT`].
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait_for_exit()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn open_for_appending(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

/// Sends a signal to a process and its children: PostgreSQL has one for each connection.
///
/// # Errors
/// Returns an error if processes cannot be listed.
pub fn signal_with_children(parent: u32, signal: Signal) -> Result<()> {
    for entry in fs::read_dir("/proc")? {
        let folder = entry?.path();
        let status = fs::read_to_string(folder.join("status")).unwrap_or_default();
        let is_parent_or_child = status
            .lines()
            .any(|line| line == format!("PPid:\t{parent}") || line == format!("Pid:\t{parent}"));
        let name = folder.file_name().and_then(OsStr::to_str);
        let pid = name.and_then(|name| name.parse().ok());
        if let Some(pid) = pid.filter(|_| is_parent_or_child).and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }
    Ok(())
}
