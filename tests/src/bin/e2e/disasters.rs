//! Runbooks of `docs/runbooks` and procedures of `docs/operations.md` on the deployment, with the commands that are written in
//! them. Users lose what the documents say, and nothing else.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::client::Client;
use tests::runbook::Runbook;
use tokio::runtime::Runtime;

use crate::deployment::{Deployment, Service};
use crate::wait::until;
use crate::{docker, progress, recover};

/// Longest time until WAL is archived, or a gateway uses Redis again.
const TIMEOUT: Duration = Duration::from_mins(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disaster {
    DeletedAccounts,
    LostRedis,
    LeakedSecretKey,
    LeakedRedisPassword,
}

impl Disaster {
    const ALL: [Self; 4] = [
        Self::DeletedAccounts,
        Self::LostRedis,
        Self::LeakedSecretKey,
        Self::LeakedRedisPassword,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::DeletedAccounts => "accounts are deleted, and restored to the time before",
            Self::LostRedis => "the data of Redis is lost",
            Self::LeakedSecretKey => "SECRET_KEY has leaked",
            Self::LeakedRedisPassword => "the Redis password of the gateways is changed",
        }
    }

    /// Returns the status of requests with a token from before.
    fn status_of_earlier_token(self) -> u16 {
        match self {
            Self::LeakedRedisPassword => 200,
            _ => 401,
        }
    }
}

/// Causes each disaster, follows the runbook, and prints a table of the results.
#[expect(clippy::print_stdout, reason = "the table is the program's output")]
pub(crate) fn run(deployment: &Deployment, runtime: &Runtime) -> Result<()> {
    let client = deployment.client()?;
    println!(
        "| disaster | the runbook and the start take | a token from before | logins |\n|---|---|---|---|"
    );
    for (number, disaster) in Disaster::ALL.into_iter().enumerate() {
        let name = disaster.name();
        progress::report(name);
        let login = format!("before disaster {number}");
        let token = runtime.block_on(client.register_and_login(&login))?;
        let start = Instant::now();
        runtime
            .block_on(async {
                tokio::task::block_in_place(|| follow_runbook(disaster, deployment, &client))?;
                recover(deployment, &client).await
            })
            .with_context(|| format!("{name}\n{}", deployment.logs()))?;
        let duration = start.elapsed();
        let profile = runtime.block_on(client.get_with_token(&token, "/api/profile"))?;
        let logged_in = runtime.block_on(client.login(&login))?;
        println!(
            "| {name} | {duration:.1?} | {} | {} |",
            profile.status, logged_in.status
        );
        ensure!(
            profile.status == disaster.status_of_earlier_token() && logged_in.status == 200,
            "{name}: token {}, login {}",
            profile.status,
            logged_in.status
        );
    }
    Ok(())
}

fn follow_runbook(disaster: Disaster, deployment: &Deployment, client: &Client) -> Result<()> {
    match disaster {
        Disaster::DeletedAccounts => restore(deployment, client),
        Disaster::LostRedis => {
            let runbook = Runbook::parse(include_str!("../../../../docs/runbooks/lost-redis.md"));
            deployment.run_commands(&runbook.commands("-rf /data")?)
        }
        Disaster::LeakedSecretKey => {
            let runbook = include_str!("../../../../docs/runbooks/leaked-secret-key.md");
            deployment.run_shell(Runbook::parse(runbook).block("secret_key.new")?)?;
            deployment.compose(&["up", "-d", "--force-recreate", "auth-api"])?;
            deployment.compose(&["run", "--rm", "-T", "auth-api", "user", "end-all-sessions"])
        }
        Disaster::LeakedRedisPassword => {
            let document = Runbook::parse(include_str!("../../../../docs/operations.md"));
            let commands = document.commands("secrets/gateway_redis_url")?;
            deployment.run_commands(&commands)?;
            until("the gateway to use Redis", TIMEOUT, || {
                let gateways = deployment.containers(Service::Gateway)?;
                let gateway = gateways.first().context("there is no gateway")?;
                let up = deployment.gateway_metric(gateway, "gateway_quota_store_up", &[]);
                Ok(up.is_ok_and(|up| up > 0.0))
            })
        }
    }
}

/// Backs PostgreSQL up, deletes all accounts and restores them.
fn restore(deployment: &Deployment, client: &Client) -> Result<()> {
    let runbook = Runbook::parse(include_str!("../../../../docs/runbooks/backup.md"));
    deployment.set("BACKUP", "1")?;
    let commands = runbook.commands("chown postgres")?;
    let without_shell = commands.split_last().context("no commands")?.1;
    deployment.run_commands(without_shell)?;
    let shell = |commands: &str| {
        let exec = ["exec", "-T", "-u", "postgres", "postgres", "bash"];
        run_with_input(deployment, &exec, commands)
    };
    until("PostgreSQL to start", TIMEOUT, || {
        Ok(shell("psql --dbname=postgres --command='SELECT 1'").is_ok())
    })?;
    shell(runbook.block("archive_command")?)?;
    deployment.compose(&["restart", "postgres"])?;
    until("PostgreSQL to start", TIMEOUT, || {
        Ok(shell("psql --dbname=postgres --command='SELECT 1'").is_ok())
    })?;
    shell(runbook.block("last_archived_wal")?)?;
    shell(runbook.block("pg_basebackup")?)?;
    let registered = tokio::runtime::Handle::current().block_on(async {
        recover(deployment, client).await?;
        client.register("after the base backup").await
    })?;
    ensure!(registered.status == 201, "{}", registered.text);
    let time = shell("psql --dbname=postgres -At --command='SELECT clock_timestamp()'")?;
    shell("psql --dbname=auth --command='DELETE FROM users'")?;
    let switch = "psql --dbname=postgres -At --command='SELECT pg_walfile_name(pg_switch_wal())'";
    shell(switch)?;

    deployment.compose(&["stop", "auth-api"])?;
    deployment.compose(&["stop", "postgres"])?;
    let commands = format!(
        "export RESTORE_TO='{time}'\n{}",
        runbook.block("recovery.signal")?
    );
    let run = [
        "run",
        "--rm",
        "--no-deps",
        "-T",
        "--entrypoint",
        "bash",
        "-u",
        "postgres",
    ];
    run_with_input(deployment, &[&run[..], &["postgres"]].concat(), &commands)?;
    deployment.compose(&["up", "-d", "postgres"])?;
    shell(runbook.block("pg_is_in_recovery")?)?;
    deployment.run_shell(
        "docker/compose exec -T redis sh -c \
         'REDISCLI_AUTH=\"$(cat /run/secrets/redis_password)\" redis-cli FLUSHDB'",
    )?;
    deployment.compose(&["up", "-d"])?;
    let logged_in = tokio::runtime::Handle::current().block_on(async {
        recover(deployment, client).await?;
        client.login("after the base backup").await
    })?;
    ensure!(logged_in.status == 200, "{}", logged_in.text);
    Ok(())
}

/// Runs Docker Compose with commands of a shell on standard input, and returns what they print.
fn run_with_input(deployment: &Deployment, arguments: &[&str], input: &str) -> Result<String> {
    let mut command = deployment.command("docker/compose");
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{arguments:?} with {input}: {}",
        docker::text(&output)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
