//! CPU time of processes, and the processes of an edge.

use std::fs;
use std::iter::Sum;
use std::process::Command;

use anyhow::{Context, Result};
use tests::Edge;

/// Clock ticks per second in `/proc/PID/stat` (`USER_HZ`): 100 on every architecture of Linux that
/// Rust supports.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CpuTime {
    pub(crate) user: f64,
    /// In the kernel.
    pub(crate) system: f64,
}

impl CpuTime {
    pub(crate) fn total(self) -> f64 {
        self.user + self.system
    }

    /// Returns the time since `before`, divided among `count` events.
    pub(crate) fn each_since(self, before: Self, count: f64) -> Self {
        Self {
            user: (self.user - before.user) / count,
            system: (self.system - before.system) / count,
        }
    }
}

impl Sum for CpuTime {
    fn sum<I: Iterator<Item = Self>>(times: I) -> Self {
        times.fold(Self::default(), |sum, time| Self {
            user: sum.user + time.user,
            system: sum.system + time.system,
        })
    }
}

/// Returns the CPU time of all `processes` so far.
pub(crate) fn cpu_time(processes: &[u32]) -> CpuTime {
    processes
        .iter()
        .filter_map(|id| fs::read_to_string(format!("/proc/{id}/stat")).ok())
        .filter_map(|stat| {
            // The name, in parentheses, may contain spaces; utime and stime are fields 14 and 15
            // (proc_pid_stat(5)), 11 and 12 after it.
            let (_, after_name) = stat.rsplit_once(") ")?;
            let mut values = after_name.split(' ').skip(11);
            let mut seconds = || {
                let ticks: u32 = values.next()?.parse().ok()?;
                Some(f64::from(ticks) / TICKS_PER_SECOND)
            };
            Some(CpuTime {
                user: seconds()?,
                system: seconds()?,
            })
        })
        .sum()
}

/// Returns the user and system time of all `processes` so far, in seconds.
pub(crate) fn cpu_seconds(processes: &[u32]) -> f64 {
    cpu_time(processes).total()
}

/// Returns the name and the process ids of each component of an edge.
pub(crate) async fn components(edge: &Edge) -> Result<[(&'static str, Vec<u32>); 4]> {
    let redis = edge.replicas.redis.as_ref();
    let redis = redis.and_then(|redis| redis.process());
    Ok([
        ("gateway", vec![edge.gateway.process.id()]),
        ("auth-api", auth_api_processes(edge)),
        ("PostgreSQL", postgres_processes(edge).await?),
        ("Redis", redis.iter().map(|process| process.id()).collect()),
    ])
}

pub(crate) fn auth_api_processes(edge: &Edge) -> Vec<u32> {
    let replicas = edge.replicas.instances.iter();
    replicas.map(|replica| replica.process.id()).collect()
}

/// Returns the postmaster of the edge's PostgreSQL server and its children, and of no other server.
async fn postgres_processes(edge: &Edge) -> Result<Vec<u32>> {
    let database = edge.replicas.database.as_ref();
    let database = database.context("the edge has no PostgreSQL database")?;
    // The backend exits when its connection closes: it must outlive `ps`.
    let mut connection = database.connect().await?;
    let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(&mut connection)
        .await?;
    let postmaster = process_ids("ps", &["-o", "ppid=", "-p", &backend.to_string()])?;
    let postmaster = *postmaster.first().context("the backend has no parent")?;
    let mut processes = process_ids("pgrep", &["-P", &postmaster.to_string()])?;
    processes.push(postmaster);
    Ok(processes)
}

/// Runs a program that prints one process id per line.
fn process_ids(program: &str, arguments: &[&str]) -> Result<Vec<u32>> {
    let output = Command::new(program).args(arguments).output()?;
    let output = String::from_utf8(output.stdout)?;
    output
        .lines()
        .map(|line| Ok(line.trim().parse()?))
        .collect()
}
