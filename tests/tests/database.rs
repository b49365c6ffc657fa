//! Databases in production setups: behind a pooler, over TLS, started late, migrated by a newer
//! version, and as an embedded file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::process::Signal;
use sqlx::{Connection, Row};
use tests::certificate::Certificate;
use tests::client::{PASSWORD, credentials};
use tests::pgbouncer::PgBouncer;
use tests::process::signal_with_children;
use tests::redis::RedisServer;
use tests::replicas::Replicas;
use tests::settings::{postgres_settings, settings};
use tests::{Store, on_both_stores, postgres};

on_both_stores!(an_older_version_starts_on_the_schema_of_a_newer_version);

#[tokio::test]
async fn replicas_work_behind_a_transaction_pooler() -> Result<()> {
    let database = postgres::Database::create_on_shared_server().await?;
    let pooler = PgBouncer::start(&database)?;
    let replicas = Replicas::start_with(Store::PostgresRedis, 3, pooler.settings()).await?;
    let mut users = tokio::task::JoinSet::new();
    for number in 0..60 {
        let client = replicas.client(number % 3)?;
        users.spawn(async move {
            let login = format!("user {number}");
            assert_eq!(client.register(&login).await?.status, 201);
            for _ in 0..3 {
                let token = client.login(&login).await?.json()["access_token"].clone();
                let token = token.as_str().expect("the response has an access token");
                let profile = client.get_with_token(token, "/api/profile").await?;
                assert_eq!(profile.json()["login"], login.as_str(), "{}", profile.text);
            }
            let deleted = client
                .post("/api/delete", &credentials(&login, PASSWORD))
                .await?;
            assert_eq!(deleted.status, 200, "{}", deleted.text);
            anyhow::Ok(())
        });
    }
    while let Some(outcome) = users.join_next().await {
        outcome??;
    }
    Ok(())
}

/// [`postgres::PASSWORD`], percent-encoded.
const PASSWORD_IN_URL: &str = "a%20test%27s%20password";

#[tokio::test]
async fn postgres_is_connected_to_over_verified_tls_if_its_url_requires_it() -> Result<()> {
    let mut server = postgres::PostgresServer::start()?;
    let folder = tempfile::tempdir()?;
    let ip = server.address.ip().to_string();
    let certificate = Certificate::generate(folder.path(), "server", &[&ip])?;
    let other_certificate = Certificate::generate(folder.path(), "other", &[&ip])?;
    server.require_tls(&certificate)?;
    let database = server.create_database().await?;
    let url_settings = |mode: &str, trusted: &Certificate| {
        let password = PASSWORD_IN_URL;
        let (user, name) = (postgres::USER, &database.name);
        let root = trusted.cert_file.display();
        let url = format!(
            "postgres://{user}:{password}@{}/{name}?sslmode={mode}&sslrootcert={root}",
            server.address
        );
        settings([("DATABASE_URL", url)])
    };

    let verified = url_settings("verify-full", &certificate);
    let replicas = Replicas::start_with(Store::PostgresRedis, 1, verified).await?;
    let client = replicas.client(0)?;
    assert_eq!(client.register("alice").await?.status, 201);
    let connections = sqlx::query(
        "SELECT bool_and(ssl), count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
         WHERE application_name = 'auth-api'",
    )
    .fetch_one(&mut database.connect().await?)
    .await?;
    assert!(connections.get::<bool, _>(0) && connections.get::<i64, _>(1) > 0);

    for failing in [
        url_settings("verify-full", &other_certificate),
        url_settings("disable", &certificate),
    ] {
        let error = Replicas::start_with(Store::PostgresRedis, 1, failing)
            .await
            .err();
        let error = error.map(|error| format!("{error:#}")).unwrap_or_default();
        assert!(
            error.contains("applying the database migrations"),
            "{error}"
        );
        assert!(!error.contains(PASSWORD_IN_URL), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn redis_is_connected_to_over_verified_tls_if_its_url_requires_it() -> Result<()> {
    let mut redis = RedisServer::start()?;
    let folder = tempfile::tempdir()?;
    let ip = redis.address.ip().to_string();
    let certificate = Certificate::generate(folder.path(), "server", &[&ip])?;
    let other_certificate = Certificate::generate(folder.path(), "other", &[&ip])?;
    let other_host = Certificate::generate(folder.path(), "host", &["redis.example.org"])?;
    let url = format!("rediss://{}", redis.address);
    let url_settings = |trusted: &Path| {
        settings([
            ("REDIS_URL", url.clone()),
            ("SSL_CERT_FILE", trusted.display().to_string()),
        ])
    };

    redis.require_tls(&certificate)?;
    let verified = url_settings(&certificate.cert_file);
    let replicas = Replicas::start_with(Store::PostgresRedis, 1, verified).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    assert_eq!(
        client.get_with_token(&token, "/api/profile").await?.status,
        200
    );
    let list = replicas.user_command(&["show", "alice"], "")?;
    let list = String::from_utf8(list.stdout)?;
    assert!(list.contains("session "), "{list}");

    for (served, trusted) in [
        (&certificate, &other_certificate),
        (&other_host, &other_host),
    ] {
        redis.require_tls(served)?;
        let settings = url_settings(&trusted.cert_file);
        let mut replicas = Replicas::start_with(Store::PostgresRedis, 0, settings).await?;
        replicas.start_another()?;
        replicas
            .client(0)?
            .wait_for_response("/ready", |response| {
                let readiness = response.json();
                readiness["users"]["ready"] == true && readiness["sessions"]["ready"] == false
            })
            .await?;
    }

    let absent = url_settings(&folder.path().join("absent.pem"));
    let error = Replicas::start_with(Store::PostgresRedis, 1, absent)
        .await
        .err();
    let error = error.map(|error| format!("{error:#}")).unwrap_or_default();
    assert!(error.contains("SSL_CERT_FILE"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_replica_waits_for_a_database_that_starts_later() -> Result<()> {
    let mut server = postgres::PostgresServer::start()?;
    let database = server.create_database().await?;
    server.stop_immediately()?;
    let settings = postgres_settings(server.address, &database.name);
    let mut replicas = Replicas::start_with(Store::PostgresRedis, 0, settings).await?;
    replicas.start_another()?;
    replicas.wait_for_log("waiting for a store").await?;
    server.start_again()?;
    replicas.wait_until_ready(0).await?;
    assert_eq!(replicas.client(0)?.register("alice").await?.status, 201);
    Ok(())
}

#[tokio::test]
async fn a_replica_says_that_it_waits_for_a_database_that_does_not_respond() -> Result<()> {
    let server = postgres::PostgresServer::start()?;
    let database = server.create_database().await?;
    let settings = postgres_settings(server.address, &database.name);
    let mut replicas = Replicas::start_with(Store::PostgresRedis, 0, settings).await?;
    let process = server.process().context("PostgreSQL runs")?;
    signal_with_children(process.id(), Signal::STOP)?;
    replicas.start_another()?;
    replicas.wait_for_log("waiting for a store").await?;
    replicas.wait_for_log("does not respond").await?;
    signal_with_children(process.id(), Signal::CONT)?;
    replicas.wait_until_ready(0).await?;
    assert_eq!(replicas.client(0)?.register("alice").await?.status, 201);
    Ok(())
}

async fn an_older_version_starts_on_the_schema_of_a_newer_version(store: Store) -> Result<()> {
    let mut replicas = Replicas::start(store, 1).await?;
    replicas.instances[0].process.terminate()?;
    let newer_migration =
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 SELECT 9999, 'of a newer version', success, checksum, execution_time
                 FROM _sqlx_migrations WHERE version = 1";
    replicas.execute(newer_migration).await?;
    replicas.start_another()?;
    replicas.wait_until_ready(1).await?;
    assert!(replicas.logs().contains("\"newest\":9999"));
    assert_eq!(replicas.client(1)?.register("alice").await?.status, 201);
    Ok(())
}

#[tokio::test]
async fn the_embedded_store_is_accessible_only_to_its_owner() -> Result<()> {
    let replicas = Replicas::start(Store::Embedded, 1).await?;
    replicas.client(0)?.register_and_login("alice").await?;
    let file = replicas.sqlite_file();
    let folder = file.parent().context("the file is in a folder")?;
    let mode = |metadata: fs::Metadata| metadata.permissions().mode() & 0o777;
    assert_eq!(mode(folder.metadata()?), 0o700);
    let files: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    assert!(files.iter().any(|entry| entry.path() == file));
    for entry in files {
        assert_eq!(mode(entry.metadata()?), 0o600, "{}", entry.path().display());
    }
    Ok(())
}

/// As after a restore from a copy that a command with the usual umask has made.
#[tokio::test]
async fn an_embedded_store_that_others_can_read_is_warned_about() -> Result<()> {
    let mut replicas = Replicas::start(Store::Embedded, 1).await?;
    let warning = "has permissions for other users";
    assert!(!replicas.logs().contains(warning));
    fs::set_permissions(replicas.sqlite_file(), fs::Permissions::from_mode(0o644))?;
    let replica = replicas.start_another()?;
    replica.process.wait_for_log(warning).await?;
    Ok(())
}

/// Schema of the first versions, which a database that is not UTF-8 may have.
const SCHEMA: [&str; 4] = [
    include_str!("../../migrations/postgres/0001_users.sql"),
    include_str!("../../migrations/postgres/0002_disabled_accounts.sql"),
    include_str!("../../migrations/postgres/0003_sessions_valid_after.sql"),
    include_str!("../../migrations/postgres/0004_oauth_clients.sql"),
];

#[tokio::test]
async fn a_database_that_is_not_utf8_stops_the_start_with_the_fix() -> Result<()> {
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let database = postgres::Database::create_with_encoding(encoding).await?;
        let settings = postgres_settings(database.server, &database.name);
        let error = Replicas::start_with(Store::PostgresRedis, 1, settings)
            .await
            .err();
        let error = error.map(|error| format!("{error:#}")).unwrap_or_default();
        assert!(
            error.contains(&format!("encoded in {encoding}")) && error.contains("ENCODING 'UTF8'"),
            "{error}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_login_that_the_encoding_lacks_is_no_outage() -> Result<()> {
    let database = postgres::Database::create_with_encoding("LATIN1").await?;
    database.execute(SCHEMA.concat()).await?;
    let mut all = postgres_settings(database.server, &database.name);
    all.extend(settings([("MIGRATE", "command".to_owned())]));
    let mut replicas = Replicas::start_with(Store::PostgresRedis, 0, all).await?;
    replicas.start_another()?;
    let client = replicas.client(0)?;
    client
        .wait_for_response("/ready", |response| {
            let problem = response.json()["users"]["problem"].to_string();
            response.status == 503 && problem.contains("UTF8")
        })
        .await?;
    assert_eq!(client.login("日本語").await?.status, 401);
    assert_eq!(client.register("日本語").await?.status, 422);
    assert_eq!(client.register("Jürgen").await?.status, 201);
    assert_eq!(client.login("Jürgen").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_login_that_violates_a_constraint_of_the_database_is_no_outage() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    replicas
        .execute("ALTER TABLE users ALTER COLUMN login TYPE VARCHAR(40)")
        .await?;
    replicas
        .execute("ALTER TABLE users ADD CHECK (login NOT LIKE '%!%')")
        .await?;
    for login in ["a".repeat(41), "alice!".to_owned()] {
        let registered = client.register(&login).await?;
        assert_eq!(registered.status, 422, "{}", registered.text);
        assert_eq!(client.login(&login).await?.status, 401);
    }
    let failures = "auth_api_store_failures_total";
    let failures = replicas.metric(0, failures, &["postgres"]).await?;
    assert!(
        failures.is_none_or(|failures| failures < 1.0),
        "{failures:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_migration_that_waits_for_a_lock_stops_no_other_client() -> Result<()> {
    let database = postgres::Database::create_on_shared_server().await?;
    database.execute(SCHEMA[0]).await?;
    let mut idle = database.connect().await?;
    let mut idle_transaction = idle.begin().await?;
    sqlx::query("SELECT login FROM users")
        .fetch_all(&mut *idle_transaction)
        .await?;

    let settings = postgres_settings(database.server, &database.name);
    let mut replicas = Replicas::start_with(Store::PostgresRedis, 0, settings).await?;
    replicas.start_another()?;
    replicas.wait_for_log("the migration is retried").await?;
    let mut other = database.connect().await?;
    sqlx::query("SET lock_timeout = '5s'")
        .execute(&mut other)
        .await?;
    while replicas.logs().matches("the migration is retried").count() < 3 {
        replicas.instances[0].process.ensure_running()?;
        sqlx::query("SELECT login FROM users")
            .fetch_all(&mut other)
            .await?;
    }
    idle_transaction.rollback().await?;
    replicas.wait_until_ready(0).await?;
    assert_eq!(replicas.client(0)?.register("alice").await?.status, 201);

    // An upgrade, from a database that has some of the migrations.
    database
        .execute("DELETE FROM _sqlx_migrations WHERE version > 1")
        .await?;
    replicas.start_another()?;
    replicas.wait_until_ready(1).await?;
    Ok(())
}

#[tokio::test]
async fn a_role_that_may_not_create_tables_can_start_if_no_migration_is_pending() -> Result<()> {
    let mut replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    start_with_role(&mut replicas, "").await?;
    replicas.wait_until_ready(1).await?;
    let client = replicas.client(1)?;
    client.register_and_login("alice").await?;
    Ok(())
}

#[tokio::test]
async fn a_server_without_a_free_connection_is_waited_for_and_named() -> Result<()> {
    let mut replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let role = start_with_role(&mut replicas, "CONNECTION LIMIT 0").await?;
    let process = &replicas.instances[1].process;
    process.wait_for_log("waiting for a store").await?;
    limit_connections(&replicas, &role, -1).await?;
    replicas.wait_until_ready(1).await?;

    limit_connections(&replicas, &role, 0).await?;
    let expected = "no connection left";
    replicas
        .client(1)?
        .wait_for_response("/ready", |response| {
            let problem = response.json()["users"]["problem"].to_string();
            response.status == 503 && problem.contains(expected)
        })
        .await?;
    let log = replicas.instances[1].process.log();
    let reasons = log
        .lines()
        .filter(|line| line.contains("store connection failed"));
    assert_eq!(reasons.count(), 1, "{log}");
    assert!(log.contains("too many connections for role"), "{log}");
    let listing = replicas
        .command("auth-api")
        .args(["user", "list"])
        .output()?;
    let error = String::from_utf8_lossy(&listing.stderr);
    assert!(!listing.status.success());
    assert!(error.contains(expected), "{error}");
    limit_connections(&replicas, &role, -1).await?;
    replicas.wait_until_ready(1).await
}

/// Starts another replica as a role of its own, which cannot create tables. Returns its name.
async fn start_with_role(replicas: &mut Replicas, options: &str) -> Result<String> {
    let database = replicas.database.as_ref();
    let database = database.context("the store has a database")?;
    let role = format!("{}_role", database.name);
    database
        .execute(format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'role' {options};
             REVOKE CREATE ON SCHEMA public FROM PUBLIC;
             GRANT SELECT ON _sqlx_migrations TO {role};
             GRANT SELECT, INSERT, UPDATE, DELETE ON users TO {role};
             GRANT SELECT ON oauth_clients TO {role};
             GRANT USAGE ON SEQUENCE users_id_seq TO {role}"
        ))
        .await?;
    replicas.set("DB_USER", &role);
    replicas.set("DB_PASSWORD", "role");
    replicas.start_another()?;
    Ok(role)
}

/// Sets the number of connections that a role may have, and ends those that it has.
async fn limit_connections(replicas: &Replicas, role: &str, limit: i32) -> Result<()> {
    let database = replicas.database.as_ref();
    let statements = format!(
        "ALTER ROLE {role} CONNECTION LIMIT {limit};
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
    );
    database
        .context("the store has a database")?
        .execute(statements)
        .await
}
