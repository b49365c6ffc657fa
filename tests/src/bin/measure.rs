//! What the whole costs: `scripts/bench auth-api`. Prints a table each for profiles, logins, a storm of
//! logins, starts, and idle connections, or only for those that its arguments name.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tests::client::{Client, PASSWORD, Protocol, credentials};
use tests::raw::Raw;
use tests::{BackEnd, Edge, Gateway, Store};

/// Nobody is refused, so that what is asked for is what is measured.
const UNLIMITED: &str = r#"
premier:
  paths:
    - pattern: "/api/*"
      features:
        rate_limit: {quota: 1000000000, duration: 60}
        monitoring: {log_threshold: 5.0}
"#;
const STORM_CLIENTS: usize = 200;
const STORM: Duration = Duration::from_secs(20);
const PROBE_EVERY: Duration = Duration::from_millis(50);
const IDLE_CONNECTIONS: u64 = 10_000;
/// What a process has open beside its connections.
const OTHER_FILES: u64 = 200;
/// As many as the hashing threads of two replicas may have in hand on two cores: 32 less a few.
const SOME_LOGINS: usize = 24;
/// So many that some wait for a thread, and a second of queue is not exceeded.
const MANY_LOGINS: usize = 48;

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the tables are what it is for")]
async fn main() -> Result<()> {
    let wanted: Vec<_> = std::env::args().skip(1).collect();
    let is_wanted = |part: &str| wanted.is_empty() || wanted.iter().any(|one| one == part);
    if is_wanted("profile") {
        println!("| `GET /api/profile`, 16 connections | µs of CPU for each request |\n|---|---|");
        println!("{}", profile().await?);
    }
    if is_wanted("logins") {
        println!("| login | ms of CPU for each |\n|---|---|");
        println!("{}", logins().await?);
    }
    if is_wanted("storm") {
        println!(
            "| storm of {STORM_CLIENTS} login clients | count | p50 | p99 | slowest |\n|---|---|---|---|---|"
        );
        println!("{}", storm().await?);
    }
    if is_wanted("start") {
        println!("| start to first answer, embedded store | |\n|---|---|");
        println!("{}", start().await?);
    }
    if is_wanted("idle") {
        println!("| idle TLS connections | MiB of the gateway |\n|---|---|");
        println!("{}", idle().await?);
    }
    Ok(())
}

async fn edge(cost: &str) -> Result<Edge> {
    Edge::on(Store::PostgresRedis)
        .config(UNLIMITED)
        .set("BCRYPT_COST", cost)
        .set("LOG_LEVEL", "INFO")
        .start()
        .await
}

/// Which processes belong to what.
async fn parts(edge: &Edge) -> Result<Vec<(&'static str, Vec<u32>)>> {
    let replicas = edge.replicas.all.iter().map(|replica| replica.process.id());
    let redis = edge
        .replicas
        .redis
        .as_ref()
        .and_then(|redis| redis.process());
    Ok(vec![
        ("gateway", vec![edge.gateway.process.id()]),
        ("auth-api", replicas.collect()),
        ("PostgreSQL", family(edge).await?),
        ("Redis", redis.iter().map(|process| process.id()).collect()),
    ])
}

/// The processes of the PostgreSQL server that the replicas use, and of no other.
async fn family(edge: &Edge) -> Result<Vec<u32>> {
    let database = edge.replicas.database.as_ref();
    let mut connection = database.context("a database")?.connect().await?;
    let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(&mut connection)
        .await?;
    let numbers = |program: &str, arguments: &[&str]| -> Result<Vec<u32>> {
        let found = Command::new(program).args(arguments).output()?;
        let numbers = String::from_utf8(found.stdout)?;
        let numbers = numbers.lines().map(|line| Ok(line.trim().parse()?));
        numbers.collect()
    };
    let server = numbers("ps", &["-o", "ppid=", "-p", &backend.to_string()])?;
    let server = *server.first().context("the server's process")?;
    let mut family = numbers("pgrep", &["-P", &server.to_string()])?;
    family.push(server);
    Ok(family)
}

/// Seconds of user and system time of processes so far.
fn cpu(processes: &[u32]) -> f64 {
    let ticks: u32 = processes
        .iter()
        .filter_map(|id| std::fs::read_to_string(format!("/proc/{id}/stat")).ok())
        .filter_map(|stat| {
            let after_name = stat.rsplit_once(") ")?.1;
            let fields: Vec<&str> = after_name.split(' ').collect();
            Some(fields[11].parse::<u32>().ok()? + fields[12].parse::<u32>().ok()?)
        })
        .sum();
    // The kernel's accounting counts in hundredths on every architecture that Rust runs on.
    f64::from(ticks) / 100.0
}

async fn profile() -> Result<String> {
    let edge = edge("4").await?;
    let token = edge.client()?.token("alice").await?;
    let url = format!("https://{}/api/profile", edge.gateway.address);
    let wrk = |seconds: &str| {
        Command::new("wrk")
            .args([
                "-t1",
                "-c16",
                seconds,
                "-H",
                &format!("Authorization: Bearer {token}"),
                &url,
            ])
            .output()
    };
    wrk("-d2s")?;
    let parts = parts(&edge).await?;
    let before: Vec<_> = parts.iter().map(|(_, ids)| cpu(ids)).collect();
    let output = String::from_utf8(wrk("-d10s")?.stdout)?;
    ensure!(!output.contains("Non-2xx"), "{output}");
    let requests: f64 = output
        .lines()
        .find_map(|line| line.trim().split_once(" requests in")?.0.parse().ok())
        .context("how many requests wrk made")?;
    let mut table = String::new();
    let mut all = 0.0;
    for ((name, ids), before) in parts.iter().zip(before) {
        let each = (cpu(ids) - before) * 1e6 / requests;
        all += each;
        writeln!(table, "| {name} | {each:.1} |")?;
    }
    Ok(table
        + &format!(
            "| all | {all:.1} |\n| requests a second | {:.0} |\n",
            requests / 10.0
        ))
}

/// Milliseconds of auth-api's CPU for a login, so many at once.
async fn login_cost(cost: &str, at_once: usize, each: u32) -> Result<f64> {
    let edge = edge(cost).await?;
    edge.client()?.register("alice").await?;
    let parts = parts(&edge).await?;
    let processes: Vec<u32> = parts[1].1.clone();
    let before = cpu(&processes);
    let mut people = tokio::task::JoinSet::new();
    for _ in 0..at_once {
        let client = edge.client()?;
        people.spawn(async move {
            let mut done = 0_u32;
            while done < each {
                done += u32::from(client.login("alice").await?.status == 200);
            }
            anyhow::Ok(done)
        });
    }
    let mut done = 0;
    while let Some(some) = people.join_next().await {
        done += some??;
    }
    Ok((cpu(&processes) - before) * 1e3 / f64::from(done))
}

async fn logins() -> Result<String> {
    let start = cpu(&[std::process::id()]);
    for _ in 0..8 {
        bcrypt::hash_with_salt(PASSWORD, 12, [7; 16])?;
    }
    let of_crate = (cpu(&[std::process::id()]) - start) * 1e3 / 8.0;
    let some = login_cost("12", SOME_LOGINS, 6).await?;
    let many = login_cost("12", MANY_LOGINS, 10).await?;
    let lone = login_cost("12", 1, 8).await?;
    let cheap = login_cost("4", 1, 400).await?;
    // A hash of cost 4 is 256 times less work than one of cost 12.
    let beyond = cheap - lone / 256.0;
    Ok(format!(
        "| a hash of the bcrypt crate, cost 12 | {of_crate:.0} |\n\
         | {MANY_LOGINS} logins at once, cost 12 | {many:.0} ({:.1} times less) |\n\
         | {SOME_LOGINS} logins at once, cost 12 | {some:.0} ({:.1} times less) |\n\
         | a lone login, cost 12 | {lone:.0} |\n| beyond the hash | {beyond:.2} |\n",
        of_crate / many,
        of_crate / some,
    ))
}

async fn storm() -> Result<String> {
    let edge = edge("12").await?;
    let token = edge.client()?.token("alice").await?;
    let over = Arc::new(AtomicBool::new(false));
    let mut people = tokio::task::JoinSet::new();
    for _ in 0..STORM_CLIENTS {
        let (client, over) = (edge.client_speaking(Protocol::Http1)?, Arc::clone(&over));
        people.spawn(async move {
            let mut told = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let start = Instant::now();
                let answer = client.login("alice").await;
                let status = answer.map_or(0, |answer| answer.status);
                told.push((status, start.elapsed()));
                if status != 200 {
                    // As Retry-After asks, and no client hammers.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            told
        });
    }
    let mut probes = Vec::new();
    for path in ["/health", "/api/profile"] {
        let (client, over, token) = (edge.client()?, Arc::clone(&over), token.clone());
        probes.push((path, tokio::spawn(probe(client, path, token, over))));
    }
    tokio::time::sleep(STORM).await;
    over.store(true, Ordering::Relaxed);
    let mut by_status: BTreeMap<u16, Vec<Duration>> = BTreeMap::new();
    for (status, took) in people.join_all().await.into_iter().flatten() {
        by_status.entry(status).or_default().push(took);
    }
    let mut table = String::new();
    for (status, times) in by_status {
        table += &row(&format!("login answered {status}"), times);
    }
    for (path, probe) in probes {
        let (times, lost) = probe.await?;
        table += &row(&format!("{path}, {lost} lost"), times);
    }
    Ok(table)
}

async fn probe(
    client: Client,
    path: &'static str,
    token: String,
    over: Arc<AtomicBool>,
) -> (Vec<Duration>, usize) {
    let (mut times, mut lost) = (Vec::new(), 0);
    while !over.load(Ordering::Relaxed) {
        let start = Instant::now();
        match client.get_as(&token, path).await {
            Ok(answer) if answer.status == 200 => times.push(start.elapsed()),
            _ => lost += 1,
        }
        tokio::time::sleep(PROBE_EVERY).await;
    }
    (times, lost)
}

fn row(what: &str, mut times: Vec<Duration>) -> String {
    times.sort();
    let count = u32::try_from(times.len()).unwrap_or(u32::MAX);
    let at = |share: usize| {
        times
            .get((times.len() * share / 100).min(times.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    };
    format!(
        "| {what} | {} ({:.1}/s) | {:.1?} | {:.1?} | {:.1?} |\n",
        count,
        f64::from(count) / STORM.as_secs_f64(),
        at(50),
        at(99),
        at(100)
    )
}

async fn start() -> Result<String> {
    let mut edge = Edge::on(Store::Embedded).start().await?;
    let begun = Instant::now();
    edge.replicas.add()?;
    let number = edge.replicas.all.len() - 1;
    let client = edge.replicas.client(number)?;
    while client
        .post("/api/login", &credentials("nobody", "nothing"))
        .await
        .is_err()
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let auth_api = begun.elapsed();
    let replica = edge.replicas.all[number].address;
    let begun = Instant::now();
    let gateway = Gateway::before(&[replica]).start().await?;
    let client = gateway.client()?;
    while !client
        .get("/health")
        .await
        .is_ok_and(|answer| answer.status == 200)
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let of_gateway = begun.elapsed();
    Ok(format!(
        "| auth-api | {auth_api:.0?}, {} MiB at rest |\n| gateway | {of_gateway:.0?}, {} MiB at rest |\n",
        edge.replicas.all[number].process.memory()? >> 20,
        gateway.process.memory()? >> 20,
    ))
}

/// Connections that have made one request and stay.
async fn idle() -> Result<String> {
    let back_end = BackEnd::good().await?;
    let gateway = Gateway::before(&[back_end.address])
        .config("premier: {limits: {idle_timeout: 600}}")
        .start()
        .await?;
    let before = gateway.process.memory()? >> 20;
    let mut kept = Vec::new();
    for _ in 0..IDLE_CONNECTIONS.min(room()?) {
        let mut connection = Raw::connect(&gateway).await?;
        connection
            .send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await?;
        connection.until("\r\n\r\n").await?;
        kept.push(connection);
    }
    let after = gateway.process.memory()? >> 20;
    Ok(format!("| 0 | {before} |\n| {} | {after} |\n", kept.len()))
}

/// Connections that a gateway started by us lets in: it keeps a file free for each one's way to a replica.
fn room() -> Result<u64> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = maximum;
    setrlimit(Resource::Nofile, Rlimit { current, maximum })?;
    Ok(maximum.unwrap_or(u64::MAX).saturating_sub(OTHER_FILES) / 2)
}
