//! CPU time of each component for a request that needs a session and a user.

use std::fmt::Write;
use std::io;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

use crate::cpu_time::{CpuTime, components, cpu_time};
use crate::edge::{MIN_BCRYPT_COST, start_edge};

const CONNECTIONS: u32 = 16;
const WARM_UP_SECONDS: u32 = 2;
const MEASURED_SECONDS: u32 = 10;

pub(crate) async fn run() -> Result<String> {
    let edge = start_edge(MIN_BCRYPT_COST).await?;
    let token = edge.client()?.register_and_login("alice").await?;
    let url = format!("https://{}/api/profile", edge.gateway.address);
    wrk(&url, &token, WARM_UP_SECONDS)?;
    let components = components(&edge).await?;
    let before: Vec<_> = components
        .iter()
        .map(|(_, processes)| cpu_time(processes))
        .collect();
    let output = String::from_utf8(wrk(&url, &token, MEASURED_SECONDS)?.stdout)?;
    ensure!(!output.contains("Non-2xx"), "{output}");
    let requests: f64 = output
        .lines()
        .find_map(|line| line.trim().split_once(" requests in")?.0.parse().ok())
        .context("wrk printed no number of requests")?;

    let mut table = format!(
        "| `GET /api/profile`, {CONNECTIONS} connections | µs of CPU per request | in the program | in the kernel |\n|---|---|---|---|\n"
    );
    let mut each = Vec::new();
    for ((name, processes), before) in components.iter().zip(before) {
        let time = cpu_time(processes).each_since(before, requests);
        write_row(&mut table, name, time)?;
        each.push(time);
    }
    write_row(&mut table, "total", each.into_iter().sum())?;
    let throughput = requests / f64::from(MEASURED_SECONDS);
    writeln!(table, "| requests per second | {throughput:.0} | | |")?;
    Ok(table)
}

fn write_row(table: &mut String, name: &str, time: CpuTime) -> std::fmt::Result {
    let microseconds = |seconds: f64| format!("{:.1}", seconds * 1e6);
    let (total, user, system) = (time.total(), time.user, time.system);
    let [total, user, system] = [total, user, system].map(microseconds);
    writeln!(table, "| {name} | {total} | {user} | {system} |")
}

fn wrk(url: &str, token: &str, seconds: u32) -> io::Result<Output> {
    Command::new("wrk")
        .args(["-t1", &format!("-c{CONNECTIONS}"), &format!("-d{seconds}s")])
        .args(["-H", &format!("Authorization: Bearer {token}"), url])
        .output()
}
