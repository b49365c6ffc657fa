//! The runbooks of `docs/runbooks/`, carried out with the commands that are written in them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;
use tests::clock::Clock;
use tests::command::{chown_to_unprivileged, unprivileged_command};
use tests::postgres::PostgresServer;
use tests::replicas::Replicas;
use tests::runbook::Runbook;
use tests::settings::{Settings, postgres_settings};
use tests::{Gateway, MockUpstream, Store, wait};

/// Recovery time that the runbooks promise for a small database, also on a busy machine.
const RECOVERY_TIME: Duration = Duration::from_mins(1);

/// Runs a command until it exits with success, and returns what it wrote to standard output.
fn run(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    Ok(text(&output.stdout))
}

/// Shell of an operator of PostgreSQL, which runs as the server's user.
struct PostgresShell {
    environment: Settings,
    /// Has the WAL archive and the base backups.
    storage: TempDir,
}

impl PostgresShell {
    fn new(server: &PostgresServer) -> Result<Self> {
        let storage = tempfile::Builder::new().prefix("backup-").tempdir()?;
        let mut environment = server.environment()?;
        for (variable, folder) in [("ARCHIVE", "wal"), ("BASE_BACKUPS", "base")] {
            let folder = storage.path().join(folder);
            fs::create_dir(&folder)?;
            environment.push((variable.to_owned(), folder.display().to_string()));
        }
        chown_to_unprivileged(storage.path())?;
        Ok(Self {
            environment,
            storage,
        })
    }

    fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    fn run(&self, script: &str) -> Result<String> {
        let mut command = unprivileged_command("sh");
        command
            .arg("-c")
            .arg(script)
            .env_clear()
            .envs(self.environment.iter().cloned())
            .current_dir(self.storage.path());
        run(&mut command)
    }

    fn base_backups(&self) -> Result<usize> {
        Ok(fs::read_dir(self.storage.path().join("base"))?.count())
    }
}

/// Waits until the first replica is ready and an account can log in: the first requests may use connections that a
/// restart of the database has closed.
async fn wait_for_login(replicas: &mut Replicas, login: &str) -> Result<()> {
    replicas.wait_until_ready(0).await?;
    let client = replicas.client(0)?;
    wait::until("a login", async || {
        let login = client.login(login).await;
        login.is_ok_and(|response| response.status == 200)
    })
    .await
}

#[tokio::test]
async fn accounts_are_restored_to_a_point_in_time_and_onto_an_empty_host() -> Result<()> {
    let backup = Runbook::parse(include_str!("../../docs/runbooks/backup.md"));
    let disk_full = Runbook::parse(include_str!("../../docs/runbooks/disk-full.md"));
    let mut server = PostgresServer::start()?;
    let database = server.create_database().await?;
    let mut shell = PostgresShell::new(&server)?;
    shell.run(backup.block("archive_mode")?)?;
    server.stop_immediately()?;
    server.start_again()?;
    shell.run(backup.block("last_archived_wal")?)?;

    let settings = postgres_settings(server.address, &database.name);
    let mut replicas = Replicas::start_with(Store::PostgresRedis, 1, settings).await?;
    let client = replicas.client(0)?;
    assert_eq!(client.register("before").await?.status, 201);
    shell.run(backup.block("pg_basebackup")?)?;
    assert_eq!(client.register("after").await?.status, 201);
    let mut connection = database.connect().await?;
    let time: String = sqlx::query_scalar("SELECT clock_timestamp()::text")
        .fetch_one(&mut connection)
        .await?;
    sqlx::query("DELETE FROM users")
        .execute(&mut connection)
        .await?;
    drop(connection);
    assert_eq!(client.login("before").await?.status, 401);

    // What was written since the backup has not been archived yet.
    server.stop_immediately()?;
    let start = Instant::now();
    shell.set("RESTORE_TO", &time);
    shell.run(backup.block("recovery.signal")?)?;
    server.start_again()?;
    shell.run(backup.block("pg_is_in_recovery")?)?;
    wait_for_login(&mut replicas, "before").await?;
    assert_eq!(client.login("after").await?.status, 200);
    assert!(start.elapsed() < RECOVERY_TIME, "{:?}", start.elapsed());

    assert_eq!(client.register("later").await?.status, 201);
    shell.run(backup.block("pg_basebackup")?)?;
    assert_eq!(client.register("last").await?.status, 201);
    shell.run("psql --dbname=postgres --command='SELECT pg_switch_wal()'")?;
    let archived = "psql --dbname=postgres --tuples-only --command=\"SELECT last_archived_wal >= \
                    pg_walfile_name(pg_current_wal_lsn() - 1) FROM pg_stat_archiver\"";
    wait::until("the WAL to be archived", async || {
        shell.run(archived).is_ok_and(|output| output.trim() == "t")
    })
    .await?;
    assert_eq!(shell.base_backups()?, 2);
    shell.set("KEEP", "1");
    shell.run(disk_full.block("pg_archivecleanup")?)?;
    assert_eq!(shell.base_backups()?, 1);

    server.stop_immediately()?;
    fs::remove_dir_all(server.data_folder())?;
    fs::remove_dir_all(server.data_folder().with_extension("damaged"))?;
    let start = Instant::now();
    shell.set("RESTORE_TO", "");
    shell.run(backup.block("recovery.signal")?)?;
    server.start_again()?;
    shell.run(backup.block("pg_is_in_recovery")?)?;
    wait_for_login(&mut replicas, "before").await?;
    for login in ["before", "after", "later", "last"] {
        assert_eq!(client.login(login).await?.status, 200, "{login}");
    }
    assert!(start.elapsed() < RECOVERY_TIME, "{:?}", start.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_standby_takes_over_from_a_lost_primary() -> Result<()> {
    let runbook = Runbook::parse(include_str!("../../docs/runbooks/lost-postgres.md"));
    let mut primary = PostgresServer::start()?;
    let database = primary.create_database().await?;
    let mut standby = PostgresServer::without_data()?;
    let mut shell = PostgresShell::new(&primary)?;
    shell.set("STANDBY", &standby.data_folder().to_string_lossy());
    shell.run(runbook.block("--write-recovery-conf")?)?;
    standby.start_again()?;

    let settings = postgres_settings(primary.address, &database.name);
    let mut replicas = Replicas::start_with(Store::PostgresRedis, 1, settings).await?;
    let token = replicas.client(0)?.register_and_login("alice").await?;
    let replayed = "psql --dbname=postgres --tuples-only --command='SELECT bool_and(replay_lsn = pg_current_wal_lsn()) \
                    FROM pg_stat_replication'";
    wait::until("the standby to have everything", async || {
        shell.run(replayed).is_ok_and(|output| output.trim() == "t")
    })
    .await?;

    primary.stop_immediately()?;
    let start = Instant::now();
    let shell = PostgresShell::new(&standby)?;
    shell.run(runbook.block("pg_promote")?)?;
    let address = standby.address;
    for (name, value) in postgres_settings(address, &database.name) {
        replicas.set(&name, &value);
    }
    replicas.start_another()?;
    replicas.wait_until_ready(1).await?;
    let client = replicas.client(1)?;
    assert_eq!(client.login("alice").await?.status, 200);
    assert_eq!(client.register("bob").await?.status, 201);
    let profile = client.get_with_token(&token, "/api/profile").await?;
    assert_eq!(profile.status, 200);
    assert!(start.elapsed() < RECOVERY_TIME, "{:?}", start.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_redis_that_lost_its_data_logs_users_out_and_nothing_else() -> Result<()> {
    let runbook = Runbook::parse(include_str!("../../docs/runbooks/lost-redis.md"));
    let mut replicas = Replicas::start(Store::PostgresRedis, 2).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;

    let redis = replicas.redis.as_mut().context("the store has Redis")?;
    redis.kill();
    redis.start_again()?;
    client
        .wait_for_response("/ready", |response| response.status == 200)
        .await?;
    let profile = client.get_with_token(&token, "/api/profile").await?;
    assert_eq!(profile.status, 200, "a restart keeps the session");

    let redis = replicas.redis.as_mut().context("the store has Redis")?;
    redis.lose_data()?;
    redis.start_again()?;
    for index in 0..2 {
        let client = replicas.client(index)?;
        client
            .wait_for_response("/ready", |response| response.status == 200)
            .await?;
        let profile = client.get_with_token(&token, "/api/profile").await?;
        assert_eq!(profile.status, 401, "replica {index}");
    }
    assert_eq!(client.login("alice").await?.status, 200);

    // In place of a backup with sessions that have ended since.
    let token = client.login("alice").await?.access_token()?;
    run(&mut replicas.shell(runbook.block("end-all-sessions")?))?;
    let profile = client.get_with_token(&token, "/api/profile").await?;
    assert_eq!(profile.status, 401);
    Ok(())
}

#[tokio::test]
async fn a_leaked_key_is_replaced_and_nothing_that_it_signed_is_accepted() -> Result<()> {
    let runbook = Runbook::parse(include_str!("../../docs/runbooks/leaked-secret-key.md"));
    let mut replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    let tokens = client.login("alice").await?.json();
    let access_token = tokens["access_token"].as_str().context("a token")?;

    let folder = tempfile::tempdir()?;
    fs::create_dir(folder.path().join("secrets"))?;
    let mut replace = replicas.shell(runbook.block("openssl rand")?);
    run(replace.current_dir(folder.path()))?;
    for (setting, file) in [
        ("SECRET_KEY_FILE", "secret_key"),
        ("SECRET_KEY_PREVIOUS_FILE", "secret_key_previous"),
        ("SECRET_KEY_NEXT_FILE", "secret_key_next"),
    ] {
        let file = folder.path().join("secrets").join(file);
        replicas.set(setting, &file.display().to_string());
    }
    replicas.unset("SECRET_KEY");
    replicas.instances[0].process.terminate()?;
    replicas.start_another()?;
    replicas.wait_until_ready(1).await?;
    let client = replicas.client(1)?;
    let profile = client.get_with_token(access_token, "/api/profile").await?;
    assert_eq!(profile.status, 401);
    let new_token = client.login("alice").await?.access_token()?;

    run(&mut replicas.shell(runbook.block("end-all-sessions")?))?;
    let body = json!({"refresh_token": tokens["refresh_token"]});
    assert_eq!(client.post("/api/refresh", &body).await?.status, 401);
    let profile = client.get_with_token(&new_token, "/api/profile").await?;
    assert_eq!(profile.status, 401);
    assert_eq!(client.login("alice").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn an_expired_certificate_is_replaced_without_a_restart() -> Result<()> {
    const METRIC: &str = "gateway_certificate_expiry_timestamp_seconds";
    let runbook = Runbook::parse(include_str!("../../docs/runbooks/certificate-expiry.md"));
    let folder = tempfile::tempdir()?;
    let ssl = folder.path().join("ssl");
    fs::create_dir(&ssl)?;
    let (cert, key) = (ssl.join("cert.pem"), ssl.join("key.pem"));
    write_expired_certificate(&cert, &key)?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::os::unix::fs::symlink(root.join("docker"), folder.path().join("docker"))?;
    let upstream = MockUpstream::always_ok().await?;
    let gateway = Gateway::builder(&[upstream.address])
        .set("SSL_CERTFILE", &cert.display().to_string())
        .set("SSL_KEYFILE", &key.display().to_string())
        .start()
        .await?;
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(script)
            .env("GATEWAY", gateway.address.to_string())
            .current_dir(folder.path());
        run(&mut command)
    };
    let enddates = runbook.block("s_client")?;
    let before = shell(enddates)?;
    assert_eq!(before.matches("2020").count(), 2, "{before}");
    let admin = gateway.admin_client()?;
    let expiry_before = admin.metric(METRIC, &[]).await?;

    shell(runbook.block("self-signed")?)?;
    wait::until("the new certificate to be served", async || {
        shell(enddates).is_ok_and(|after| {
            let lines: Vec<_> = after.lines().collect();
            !after.contains("2020") && lines.len() == 2 && lines[0] == lines[1]
        })
    })
    .await?;
    assert!(admin.metric(METRIC, &[]).await? > expiry_before);
    Ok(())
}

/// Writes a self-signed certificate that expired in 2020, and its key.
fn write_expired_certificate(cert_file: &Path, key_file: &Path) -> Result<()> {
    let key = rcgen::KeyPair::generate()?;
    let mut certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()])?;
    certificate.not_after = rcgen::date_time_ymd(2020, 1, 1);
    fs::write(cert_file, certificate.self_signed(&key)?.pem())?;
    fs::write(key_file, key.serialize_pem())?;
    Ok(())
}

#[tokio::test]
async fn tokens_of_a_replica_with_a_wrong_clock_are_rejected_until_it_is_corrected() -> Result<()> {
    let runbook = Runbook::parse(include_str!("../../docs/runbooks/clock-skew.md"));
    let settings = vec![("ACCESS_TOKEN_TTL".to_owned(), "50".to_owned())];
    let mut replicas = Replicas::start_with(Store::PostgresRedis, 1, settings).await?;
    let clock = Clock::new(60)?;
    for (name, value) in clock.environment()? {
        replicas.set(&name, &value);
    }
    replicas.start_another()?;
    replicas.wait_until_ready(1).await?;
    let [right, wrong] = [replicas.client(0)?, replicas.client(1)?];
    right.register("alice").await?;
    let statuses = async || {
        let mut statuses = Vec::new();
        for (issuer, verifier) in [(&wrong, &right), (&right, &wrong)] {
            let token = issuer.login("alice").await?.access_token()?;
            let profile = verifier.get_with_token(&token, "/api/profile").await?;
            let own = issuer.get_with_token(&token, "/api/profile").await?;
            assert_eq!(own.status, 200);
            statuses.push(profile.status);
        }
        anyhow::Ok(statuses)
    };

    // Ahead by more than the tolerance and than the lifetime of a token: its tokens are not valid yet elsewhere, and
    // those of others have expired on it.
    assert_eq!(statuses().await?, [401, 401]);
    clock.set(25)?;
    assert_eq!(statuses().await?, [200, 200]);
    // Behind: the tokens of others are not valid yet on it, and its own expire early elsewhere.
    clock.set(-60)?;
    assert_eq!(statuses().await?, [401, 401]);

    // The step that shows it, on the wrong and on the right host, and then the correction.
    let block = runbook.block("date -u")?;
    let mut dates = Vec::new();
    for environment in [clock.environment()?, Settings::new()] {
        let date = run(Command::new("sh").arg("-c").arg(block).envs(environment))?;
        dates.push(date.trim().parse::<f64>()?);
    }
    assert!(dates[1] - dates[0] > 55.0, "{dates:?}");
    clock.set(0)?;
    assert_eq!(statuses().await?, [200, 200]);
    Ok(())
}

#[tokio::test]
async fn a_step_of_the_clock_of_redis_ends_sessions_by_as_much_and_nothing_else() -> Result<()> {
    const SESSION_LIFETIME: i64 = 3600;
    let settings = vec![("REFRESH_TOKEN_TTL".to_owned(), SESSION_LIFETIME.to_string())];
    let mut replicas = Replicas::start_with(Store::PostgresRedis, 1, settings).await?;
    let clock = Clock::new(0)?;
    let redis = replicas.redis.as_mut().context("the store has Redis")?;
    redis.use_clock(&clock)?;
    let client = replicas.client(0)?;
    client
        .wait_for_response("/ready", |response| response.status == 200)
        .await?;
    client.register("alice").await?;
    let token = client.login("alice").await?.access_token()?;
    let status = async || {
        let profile = client.get_with_token(&token, "/api/profile").await?;
        anyhow::Ok(profile.status)
    };

    clock.set(SESSION_LIFETIME / 2)?;
    // A session whose end has come earlier, but not now.
    replicas.start_another()?;
    replicas.wait_until_ready(1).await?;
    let uncached = replicas.client(1)?;
    let profile = uncached.get_with_token(&token, "/api/profile").await?;
    assert_eq!(profile.status, 200);
    clock.set(SESSION_LIFETIME + 60)?;
    wait::until("the session to end", async || {
        status().await.is_ok_and(|status| status == 401)
    })
    .await?;
    let token = client.login("alice").await?.access_token()?;
    clock.set(0)?;
    let profile = client.get_with_token(&token, "/api/profile").await?;
    assert_eq!(profile.status, 200, "a step back ends no session");
    Ok(())
}

#[tokio::test]
async fn a_replication_slot_without_a_standby_no_longer_fills_the_disk() -> Result<()> {
    let runbook = Runbook::parse(include_str!("../../docs/runbooks/disk-full.md"));
    let server = PostgresServer::start()?;
    let mut shell = PostgresShell::new(&server)?;
    shell.run(
        "psql --dbname=postgres --command=\"SELECT pg_create_physical_replication_slot('standby', true)\"",
    )?;
    shell.set("FULL", &server.data_folder().to_string_lossy());
    let largest = shell.run(runbook.block("du -xh")?)?;
    assert!(largest.contains("pg_wal"), "{largest}");

    shell.run(runbook.block("pg_drop_replication_slot")?)?;
    let count = "psql --dbname=postgres --tuples-only --command='SELECT count(*) FROM pg_replication_slots'";
    assert_eq!(shell.run(count)?.trim(), "0");
    Ok(())
}

#[test]
fn every_runbook_is_rehearsed() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbooks");
    let this_file = include_str!("runbooks.rs");
    let operations = include_str!("../../docs/operations.md");
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let rehearsed = this_file.contains(&format!("docs/runbooks/{name}\")"));
        ensure!(rehearsed, "{name} is not rehearsed");
        let link = format!("(runbooks/{name})");
        ensure!(operations.contains(&link), "{name} is not linked");
    }
    Ok(())
}
