//! Rows of users that neither this program nor the Python service writes: each concerns its own user alone.

use anyhow::Result;
use serde_json::{Value, json};
use tests::client::{Client, credentials};
use tests::replicas::Replicas;
use tests::{Store, on_both_stores};

on_both_stores!(
    a_time_that_clients_cannot_represent_is_null_for_its_own_user,
    a_cutoff_at_any_time_concerns_its_own_user,
);

/// Statements that damage a column of Alice's row, by the column.
fn damaging_statements(store: Store) -> &'static [(&'static str, &'static str)] {
    match store {
        Store::PostgresRedis => &[
            (
                "last_login",
                "UPDATE users SET last_login = 'infinity' WHERE login = 'alice'",
            ),
            (
                "last_login",
                "UPDATE users SET last_login = '-infinity' WHERE login = 'alice'",
            ),
            (
                "last_login",
                "UPDATE users SET last_login = '294276-12-31 23:59:59+00' WHERE login = 'alice'",
            ),
            (
                "created_at",
                "UPDATE users SET created_at = '0044-03-15 12:00:00+00 BC' WHERE login = 'alice'",
            ),
            (
                "created_at",
                "UPDATE users SET created_at = '4713-01-01 00:00:00+00 BC' WHERE login = 'alice'",
            ),
            (
                "created_at",
                "UPDATE users SET created_at = 'infinity' WHERE login = 'alice'",
            ),
            (
                "created_at",
                "UPDATE users SET created_at = NULL WHERE login = 'alice'",
            ),
        ],
        Store::Embedded => &[
            (
                "last_login",
                "UPDATE users SET last_login = 9223372036854775807 WHERE login = 'alice'",
            ),
            (
                "created_at",
                "UPDATE users SET created_at = -9223372036854775808 WHERE login = 'alice'",
            ),
            (
                "created_at",
                "UPDATE users SET created_at = 253402300800000000 WHERE login = 'alice'",
            ),
        ],
    }
}

async fn a_time_that_clients_cannot_represent_is_null_for_its_own_user(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    let alice = client.register_and_login("alice").await?;
    let bob = client.register_and_login("bob").await?;
    for (column, statement) in damaging_statements(store) {
        replicas.execute(*statement).await?;
        // Concurrent requests share a query.
        let mut profiles = tokio::task::JoinSet::new();
        for number in 0..20 {
            let (client, token) = (client.clone(), [&alice, &bob][number % 2].clone());
            profiles.spawn(async move { client.get_with_token(&token, "/api/profile").await });
        }
        while let Some(response) = profiles.join_next().await {
            let response = response??;
            assert_eq!(response.status, 200, "{statement}: {}", response.text);
            let profile = response.json();
            assert_eq!(
                profile[*column] == Value::Null,
                profile["login"] == "alice",
                "{statement}: {profile}"
            );
        }
        let list = replicas.user_command(&["list"], "")?;
        assert!(list.status.success(), "{statement}");
        assert_eq!(String::from_utf8(list.stdout)?.lines().count(), 2);
        let show = replicas.user_command(&["show", "alice"], "")?;
        assert!(show.status.success(), "{statement}");
        sessions_work(&client, statement).await?;
    }
    let panics = replicas.metric(0, "auth_api_panics_total", &[]).await?;
    assert_eq!(panics, Some(0.0));
    Ok(())
}

/// Checks that Alice can log in, refresh her tokens, and list and end her sessions.
async fn sessions_work(client: &Client, statement: &str) -> Result<()> {
    let login = client.login("alice").await?;
    assert_eq!(login.status, 200, "{statement}: {}", login.text);
    let body = json!({"refresh_token": login.json()["refresh_token"]});
    let refreshed = client.post("/api/refresh", &body).await?;
    assert_eq!(refreshed.status, 200, "{statement}: {}", refreshed.text);
    let token = refreshed.access_token()?;
    let sessions = client.get_with_token(&token, "/api/sessions").await?;
    assert_eq!(sessions.status, 200, "{statement}: {}", sessions.text);
    let logout = client.post_with_token(&token, "/api/logout", None).await?;
    assert_eq!(logout.status, 200, "{statement}: {}", logout.text);
    Ok(())
}

#[tokio::test]
async fn a_missing_password_hash_matches_no_password_and_concerns_its_own_user() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    let alice = client.register_and_login("alice").await?;
    client.register("bob").await?;
    for statement in [
        "UPDATE users SET password_hash = '' WHERE login = 'alice'",
        "ALTER TABLE users ALTER password_hash DROP NOT NULL",
        "UPDATE users SET password_hash = NULL WHERE login = 'alice'",
    ] {
        replicas.execute(statement).await?;
    }
    for password in ["", "securepassword123"] {
        let body = credentials("alice", password);
        assert_eq!(client.post("/api/login", &body).await?.status, 401);
    }
    assert_eq!(client.login("bob").await?.status, 200);
    let profile = client.get_with_token(&alice, "/api/profile").await?;
    assert_eq!(profile.status, 200, "{}", profile.text);
    assert!(replicas.user_command(&["list"], "")?.status.success());
    assert!(
        replicas
            .user_command(&["show", "alice"], "")?
            .status
            .success()
    );
    Ok(())
}

/// Statements that set the time up to which Alice's sessions have ended, with whether she can log in.
fn cutoffs(store: Store) -> &'static [(&'static str, bool)] {
    match store {
        Store::PostgresRedis => &[
            ("'infinity'", false),
            ("'294276-12-31 23:59:59+00'", false),
            ("'-infinity'", true),
            ("'4713-01-01 00:00:00+00 BC'", true),
            ("NULL", true),
        ],
        Store::Embedded => &[
            ("9223372036854775807", false),
            ("-9223372036854775808", true),
            ("NULL", true),
        ],
    }
}

async fn a_cutoff_at_any_time_concerns_its_own_user(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    for (cutoff, is_usable) in cutoffs(store) {
        let bob = client.register_and_login("bob").await?;
        let set = format!("UPDATE users SET sessions_valid_after = {cutoff} WHERE login = 'alice'");
        replicas.execute(set).await?;
        let status = client.login("alice").await?.status;
        assert_eq!(status, if *is_usable { 200 } else { 401 }, "{cutoff}");
        let profile = client.get_with_token(&bob, "/api/profile").await?;
        assert_eq!(profile.status, 200, "{cutoff}: {}", profile.text);
        for arguments in [&["list"][..], &["show", "alice"]] {
            let output = replicas.user_command(arguments, "")?;
            assert!(output.status.success(), "{cutoff}: {output:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_missing_login_concerns_its_own_user() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    client.register("bob").await?;
    for statement in [
        "ALTER TABLE users ALTER login DROP NOT NULL",
        "UPDATE users SET login = NULL WHERE login = 'alice'",
    ] {
        replicas.execute(statement).await?;
    }
    assert_eq!(client.login("bob").await?.status, 200);
    let list = replicas.user_command(&["list"], "")?;
    assert!(list.status.success(), "{list:?}");
    assert_eq!(String::from_utf8(list.stdout)?.lines().count(), 2);
    let delete = replicas.user_command(&["delete", "--id", "1"], "")?;
    assert!(delete.status.success(), "{delete:?}");
    Ok(())
}

#[tokio::test]
async fn text_that_is_not_utf_8_concerns_its_own_user() -> Result<()> {
    let replicas = Replicas::start(Store::Embedded, 1).await?;
    let client = replicas.client(0)?;
    let alice = client.register_and_login("alice").await?;
    client.register("bob").await?;
    let run = |arguments: &[&str], input| -> Result<usize> {
        let output = replicas.user_command(arguments, input)?;
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        Ok(String::from_utf8(output.stdout)?.lines().count())
    };
    for (column, bytes) in [
        ("login", "ff61"),
        ("password_hash", "ff61"),
        // `$2b$` and a byte that is not UTF-8.
        ("password_hash", "24326224ff"),
    ] {
        let damage = format!("UPDATE users SET {column} = CAST(x'{bytes}' AS TEXT) WHERE id = 1");
        replicas.execute(damage).await?;
        assert_eq!(client.login("bob").await?.status, 200, "{column}");
        assert_eq!(run(&["list"], "")?, 2, "{column}");
        run(&["show", "--id", "1"], "")?;
        if column == "login" {
            let profile = client.get_with_token(&alice, "/api/profile").await?;
            assert_eq!(profile.json()["login"], "\u{fffd}a");
        }
        run(&["set-password", "--id", "1"], "a better password\n")?;
    }
    run(&["delete", "--id", "1"], "")?;
    assert_eq!(run(&["list"], "")?, 1);
    Ok(())
}

#[tokio::test]
async fn text_of_sessions_and_clients_that_is_not_utf_8_hides_no_other_row() -> Result<()> {
    let replicas = Replicas::start(Store::Embedded, 1).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    let succeeds = |program: &[&str]| -> Result<String> {
        let output = replicas.command("auth-api").args(program).output()?;
        assert!(output.status.success(), "{program:?}: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    succeeds(&["client", "create", "orders"])?;
    succeeds(&["client", "create", "billing"])?;
    for damage in [
        "UPDATE sessions SET user_agent = CAST(x'ff' AS TEXT), address = CAST(x'ff' AS TEXT)",
        "UPDATE oauth_clients SET name = CAST(x'ff' AS TEXT) WHERE name = 'orders'",
    ] {
        replicas.execute(damage).await?;
    }
    let sessions = client.get_with_token(&token, "/api/sessions").await?;
    assert_eq!(sessions.status, 200, "{}", sessions.text);
    succeeds(&["user", "show", "alice"])?;
    let list = succeeds(&["client", "list"])?;
    assert!(list.contains("billing"), "{list}");
    assert_eq!(list.lines().count(), 2, "{list}");
    replicas
        .execute("UPDATE oauth_clients SET id = CAST(x'ff' AS TEXT) WHERE name = 'billing'")
        .await?;
    let list = succeeds(&["client", "list"])?;
    assert_eq!(list.lines().count(), 1, "{list}");
    Ok(())
}
