//! The command `auth-api client`, with which an operator registers services that introspect and revoke tokens.

use std::fs;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};
use sqlx::{ConnectOptions, Row};
use tests::oauth_client::{INTROSPECT, OAuthClient};
use tests::replicas::Replicas;
use tests::{Store, on_both_stores};

on_both_stores!(
    an_operator_registers_lists_and_deletes_clients,
    a_deleted_client_is_refused_at_once_by_every_replica,
    the_store_has_only_the_hash_of_a_secret,
    operator_actions_on_clients_are_audited,
    an_invalid_name_registers_nothing,
);

fn stdout(output: Output) -> Result<String> {
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

fn stderr(output: Output) -> Result<String> {
    ensure!(!output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stderr)?)
}

async fn an_operator_registers_lists_and_deletes_clients(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let list = || stdout(replicas.client_command(&["list"])?);
    assert_eq!(list()?, "");
    let first = OAuthClient::create(&replicas, "orders service")?;
    // A secret is replaced by a second client of the same name.
    let second = OAuthClient::create(&replicas, "orders service")?;
    for one in [&first, &second] {
        assert_eq!(one.id.len(), 32, "{}", one.id);
        // 256 bits in base64url.
        assert_eq!(one.secret.len(), 43);
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        assert!(one.secret.bytes().all(is_plain));
    }
    assert_ne!(first.secret, second.secret);
    let listed = list()?;
    assert_eq!(listed.lines().count(), 2, "{listed}");
    for one in [&first, &second] {
        let line = listed.lines().find(|line| line.starts_with(&one.id));
        let line = line.context("the client is listed")?;
        assert!(line.contains("  orders service  created 20"), "{line}");
        assert!(!listed.contains(&one.secret));
    }
    stdout(replicas.client_command(&["delete", &first.id])?)?;
    let listed = list()?;
    assert!(!listed.contains(&first.id) && listed.contains(&second.id));
    for unknown in [first.id.as_str(), "orders service", ""] {
        let error = stderr(replicas.client_command(&["delete", unknown])?)?;
        assert!(error.contains("no client has that id"), "{error}");
    }
    Ok(())
}

async fn a_deleted_client_is_refused_at_once_by_every_replica(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 3).await?;
    for _ in 0..3 {
        let service = OAuthClient::create(&replicas, "orders")?;
        for index in 0..3 {
            let inactive = service.introspect(&replicas.client(index)?, "x").await?;
            assert_eq!(inactive, json!({"active": false}));
        }
        stdout(replicas.client_command(&["delete", &service.id])?)?;
        for index in 0..3 {
            let client = replicas.client(index)?;
            let refused = service.request(&client, INTROSPECT, "x").await?;
            assert_eq!(refused.status, 401, "{index}: {}", refused.text);
        }
    }
    Ok(())
}

/// Returns the hash of the secret of the only client.
async fn stored_hash(replicas: &Replicas) -> Result<Vec<u8>> {
    const SELECT: &str = "SELECT secret_hash FROM oauth_clients";
    if let Some(database) = &replicas.database {
        let mut connection = database.connect().await?;
        let row = sqlx::query(SELECT).fetch_one(&mut connection).await?;
        return Ok(row.try_get(0)?);
    }
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(replicas.sqlite_file());
    let mut connection = options.connect().await?;
    let row = sqlx::query(SELECT).fetch_one(&mut connection).await?;
    Ok(row.try_get(0)?)
}

async fn the_store_has_only_the_hash_of_a_secret(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let service = OAuthClient::create(&replicas, "orders")?;
    let hash = digest(&SHA256, service.secret.as_bytes());
    assert_eq!(stored_hash(&replicas).await?, hash.as_ref());
    if store == Store::Embedded {
        let file = replicas.sqlite_file();
        for file in [file.with_extension("db-wal"), file] {
            let content = fs::read(&file).unwrap_or_default();
            let secret = service.secret.as_bytes();
            assert!(!content.windows(secret.len()).any(|text| text == secret));
        }
    }
    // A client that sends what a thief of the store has.
    let digits = hash.as_ref().iter().map(|byte| format!("{byte:02x}"));
    let thief = OAuthClient {
        secret: digits.collect::<Vec<_>>().concat(),
        ..service
    };
    let client = replicas.client(0)?;
    let refused = thief.request(&client, INTROSPECT, "x").await?;
    assert_eq!(refused.status, 401);
    Ok(())
}

async fn operator_actions_on_clients_are_audited(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let created = replicas.client_command(&["create", "orders"])?;
    let output = stdout(created.clone())?;
    let id = output.lines().next().context("a line")?;
    let id = id.strip_prefix("client_id: ").context("the id")?;
    let deleted = replicas.client_command(&["delete", id])?;
    for (output, event) in [
        (created, "oauth_client_created"),
        (deleted, "oauth_client_deleted"),
    ] {
        let log = String::from_utf8(output.stderr)?;
        assert_eq!(log.lines().count(), 1, "{log}");
        let record: Value = serde_json::from_str(&log)?;
        assert_eq!(record["event"], event);
        assert_eq!(record["target"], "audit");
        assert_eq!(record["oauth_client"], id);
        assert_eq!(record["oauth_client_name"], "orders");
        assert!(record["operator"].is_number(), "{record}");
    }
    Ok(())
}

async fn an_invalid_name_registers_nothing(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let too_long = "x".repeat(256);
    for name in [
        "",
        " ",
        " orders",
        "a\nb",
        "\u{1b}[2J",
        "ord\u{200b}ers",
        &too_long,
    ] {
        let error = stderr(replicas.client_command(&["create", name])?)?;
        assert!(error.contains("name"), "{name:?}: {error}");
    }
    assert_eq!(stdout(replicas.client_command(&["list"])?)?, "");
    for name in ["日本語 O'Brien; DROP TABLE users", &"é".repeat(255)] {
        OAuthClient::create(&replicas, name)?;
        assert!(stdout(replicas.client_command(&["list"])?)?.contains(name));
    }
    Ok(())
}

#[tokio::test]
async fn a_client_can_be_registered_before_the_first_start() -> Result<()> {
    let mut replicas = Replicas::start(Store::Embedded, 0).await?;
    for arguments in [&["list"][..], &["delete", "x"]] {
        let error = stderr(replicas.client_command(arguments)?)?;
        assert!(error.contains("does not exist"), "{error}");
        assert!(!replicas.sqlite_file().try_exists()?);
    }
    let service = OAuthClient::create(&replicas, "orders")?;
    replicas.start_another()?;
    replicas.wait_until_ready(0).await?;
    let client = replicas.client(0)?;
    let inactive = service.introspect(&client, "x").await?;
    assert_eq!(inactive, json!({"active": false}));
    Ok(())
}
