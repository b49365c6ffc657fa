//! Databases as operators run them: behind a pooler, over TLS, and left behind by a newer release.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result};
use sqlx::Row;
use tests::certificate::Certificate;
use tests::client::{PASSWORD, credentials};
use tests::pgbouncer::PgBouncer;
use tests::replica::{self, Replicas, settings};
use tests::{Store, on_both_stores, postgres};

on_both_stores!(an_older_program_starts_on_what_a_newer_one_left);

#[tokio::test]
async fn a_pooler_may_lend_a_connection_for_one_transaction() -> Result<()> {
    let database = postgres::Database::shared().await?;
    let pooler = PgBouncer::before(&database)?;
    let through = [
        replica::database(pooler.address, &database.name),
        settings([("DB_POOL_MODE", "transaction".to_owned())]),
    ]
    .concat();
    let replicas = Replicas::start_with(Store::PostgresRedis, 3, through).await?;
    let mut people = tokio::task::JoinSet::new();
    for number in 0..60 {
        let client = replicas.client(number % 3)?;
        people.spawn(async move {
            let login = format!("person {number}");
            assert_eq!(client.register(&login).await?.status, 201);
            for _ in 0..3 {
                let token = client.login(&login).await?.json()["access_token"].clone();
                let token = token.as_str().expect("a token");
                let profile = client.get_as(token, "/api/profile").await?;
                assert_eq!(profile.json()["login"], login.as_str(), "{}", profile.text);
            }
            let gone = client
                .post("/api/delete", &credentials(&login, PASSWORD))
                .await?;
            assert_eq!(gone.status, 200, "{}", gone.text);
            anyhow::Ok(())
        });
    }
    while let Some(person) = people.join_next().await {
        person??;
    }
    Ok(())
}

#[tokio::test]
async fn a_server_is_spoken_to_over_tls_where_its_url_asks_for_that() -> Result<()> {
    let mut server = postgres::Server::start()?;
    let folder = tempfile::tempdir()?;
    let ip = server.address.ip().to_string();
    let certificate = Certificate::make(folder.path(), "server", &[&ip])?;
    let stranger = Certificate::make(folder.path(), "stranger", &[&ip])?;
    server.require_tls(&certificate)?;
    let database = server.database().await?;
    let url = |mode: &str, trusted: &Certificate| {
        let password = PASSWORD_IN_URL;
        let (user, name) = (postgres::USER, &database.name);
        let root = trusted.cert.display();
        let url = format!(
            "postgres://{user}:{password}@{}/{name}?sslmode={mode}&sslrootcert={root}",
            server.address
        );
        settings([("DATABASE_URL", url)])
    };

    let verified = url("verify-full", &certificate);
    let replicas = Replicas::start_with(Store::PostgresRedis, 1, verified).await?;
    let client = replicas.client(0)?;
    assert_eq!(client.register("alice").await?.status, 201);
    let ours = sqlx::query(
        "SELECT bool_and(ssl), count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
         WHERE application_name = 'auth-api'",
    )
    .fetch_one(&mut database.connect().await?)
    .await?;
    assert!(ours.get::<bool, _>(0) && ours.get::<i64, _>(1) > 0);

    for refused in [url("verify-full", &stranger), url("disable", &certificate)] {
        let error = Replicas::start_with(Store::PostgresRedis, 1, refused)
            .await
            .err();
        let error = error.map(|error| format!("{error:#}")).unwrap_or_default();
        assert!(error.contains("bringing the tables up to date"), "{error}");
        assert!(!error.contains(PASSWORD_IN_URL), "{error}");
    }
    Ok(())
}

/// [`postgres::PASSWORD`] as a URL spells it.
const PASSWORD_IN_URL: &str = "a%20test%27s%20password";

#[tokio::test]
async fn a_server_may_come_later_than_a_replica() -> Result<()> {
    let mut server = postgres::Server::start()?;
    let database = server.database().await?;
    server.stop()?;
    let there = replica::database(server.address, &database.name);
    let mut replicas = Replicas::start_with(Store::PostgresRedis, 0, there).await?;
    replicas.add()?;
    tests::wait::until("the replica to wait", async || {
        replicas.logs().contains("waiting for a store")
    })
    .await?;
    server.resume()?;
    replicas.ready(0).await?;
    assert_eq!(replicas.client(0)?.register("alice").await?.status, 201);
    Ok(())
}

async fn an_older_program_starts_on_what_a_newer_one_left(store: Store) -> Result<()> {
    let mut replicas = Replicas::start(store, 1).await?;
    replicas.all[0].process.stop()?;
    let newer =
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 SELECT 9999, 'of a newer version', success, checksum, execution_time
                 FROM _sqlx_migrations WHERE version = 1";
    replicas.execute(newer).await?;
    replicas.add()?;
    replicas.ready(1).await?;
    assert!(replicas.logs().contains("\"newest\":9999"));
    assert_eq!(replicas.client(1)?.register("alice").await?.status, 201);
    Ok(())
}

#[tokio::test]
async fn the_embedded_store_is_for_its_owner_alone() -> Result<()> {
    let replicas = Replicas::start(Store::Embedded, 1).await?;
    replicas.client(0)?.token("alice").await?;
    let file = replicas.embedded();
    let folder = file.parent().context("a folder")?;
    let mode = |metadata: fs::Metadata| metadata.permissions().mode() & 0o777;
    assert_eq!(mode(folder.metadata()?), 0o700);
    let files: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    assert!(files.iter().any(|entry| entry.path() == file));
    for entry in files {
        assert_eq!(mode(entry.metadata()?), 0o600, "{}", entry.path().display());
    }
    Ok(())
}
