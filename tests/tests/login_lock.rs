//! Lock of a login after ten wrong passwords: operators lift it, and it does not stop the owner's sessions.

use anyhow::Result;
use serde_json::json;
use tests::client::{Client, NEW_PASSWORD, PASSWORD, credentials};
use tests::replicas::Replicas;
use tests::{Store, on_both_stores};

on_both_stores!(
    an_operator_lifts_the_lock_of_a_login,
    failures_of_strangers_do_not_stop_a_live_session,
    failures_in_a_session_lock_that_session_alone,
    a_session_of_another_account_does_not_bypass_the_lock,
);

/// Sends ten wrong passwords for `login`.
async fn lock(client: &Client, login: &str) -> Result<()> {
    for _ in 0..10 {
        let wrong = credentials(login, "a wrong password");
        assert_eq!(client.post("/api/login", &wrong).await?.status, 401);
    }
    assert_eq!(client.login(login).await?.status, 429);
    Ok(())
}

async fn change_password(client: &Client, token: &str, current: &str) -> Result<u16> {
    let body = json!({"current_password": current, "new_password": NEW_PASSWORD});
    let response = client
        .post_with_token(token, "/api/password", Some(&body))
        .await?;
    Ok(response.status)
}

async fn delete(client: &Client, token: &str, login: &str, password: &str) -> Result<u16> {
    let body = credentials(login, password);
    let response = client
        .post_with_token(token, "/api/delete", Some(&body))
        .await?;
    Ok(response.status)
}

async fn an_operator_lifts_the_lock_of_a_login(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    let show = || -> Result<String> {
        let output = replicas.user_command(&["show", "alice"], "")?;
        Ok(String::from_utf8(output.stdout)?)
    };
    lock(&client, "alice").await?;
    assert!(show()?.contains("locked"), "{}", show()?);
    let unlock = replicas.user_command(&["unlock", "alice"], "")?;
    assert!(unlock.status.success());
    let audit = String::from_utf8(unlock.stderr)?;
    assert!(audit.contains(r#""event":"unlocked""#), "{audit}");
    assert!(!show()?.contains("locked"), "{}", show()?);
    assert_eq!(client.login("alice").await?.status, 200);

    lock(&client, "alice").await?;
    let set_password = replicas.user_command(&["set-password", "alice"], NEW_PASSWORD)?;
    assert!(set_password.status.success());
    let new_login = credentials("alice", NEW_PASSWORD);
    assert_eq!(client.post("/api/login", &new_login).await?.status, 200);
    Ok(())
}

async fn failures_of_strangers_do_not_stop_a_live_session(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    lock(&replicas.client(1)?, "alice").await?;
    assert_eq!(change_password(&client, &token, PASSWORD).await?, 200);
    let without_token = credentials("alice", NEW_PASSWORD);
    let rejected = client.post("/api/delete", &without_token).await?;
    assert_eq!(rejected.status, 429);
    assert_eq!(delete(&client, &token, "alice", NEW_PASSWORD).await?, 200);
    Ok(())
}

async fn failures_in_a_session_lock_that_session_alone(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    for number in 0..10 {
        let status = if number % 2 == 0 {
            change_password(&client, &token, "a wrong password").await?
        } else {
            delete(&client, &token, "alice", "a wrong password").await?
        };
        assert_eq!(status, 401, "{number}");
    }
    assert_eq!(change_password(&client, &token, PASSWORD).await?, 429);
    assert_eq!(delete(&client, &token, "alice", PASSWORD).await?, 429);
    let other_token = client.login("alice").await?.access_token()?;
    assert_eq!(change_password(&client, &other_token, PASSWORD).await?, 200);
    Ok(())
}

async fn a_session_of_another_account_does_not_bypass_the_lock(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    let alice = client.register_and_login("alice").await?;
    let mallory = client.register_and_login("mallory").await?;
    for _ in 0..10 {
        let status = delete(&client, &mallory, "alice", "a wrong password").await?;
        assert_eq!(status, 401);
    }
    assert_eq!(client.login("alice").await?.status, 429);
    assert_eq!(delete(&client, &mallory, "alice", PASSWORD).await?, 429);
    // An ended session is as good as none.
    client.post_with_token(&alice, "/api/logout", None).await?;
    assert_eq!(delete(&client, &alice, "alice", PASSWORD).await?, 429);
    Ok(())
}

/// The login of an existing table may have a collation that ignores case, with which each of its spellings finds the account.
#[tokio::test]
async fn spellings_that_the_database_takes_for_one_login_count_for_one_lock() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    replicas
        .execute(
            "CREATE COLLATION ignoring_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
             ALTER TABLE users ALTER COLUMN login TYPE varchar(255) COLLATE ignoring_case",
        )
        .await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    assert_eq!(client.login("ALICE").await?.status, 200);
    for attempt in 0..10 {
        let spelling = ["alice", "ALICE", "Alice", "aLICE"][attempt % 4];
        let wrong = credentials(spelling, "a wrong password");
        assert_eq!(client.post("/api/login", &wrong).await?.status, 401);
    }
    assert_eq!(client.login("aliCE").await?.status, 429);
    let unlocked = replicas.user_command(&["unlock", "alice"], "")?;
    assert!(unlocked.status.success(), "{unlocked:?}");
    assert_eq!(client.login("aliCE").await?.status, 200);
    Ok(())
}
