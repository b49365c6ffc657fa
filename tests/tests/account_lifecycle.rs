//! Accounts from registration to deletion: through the gateway over HTTPS, on several replicas, and
//! by concurrent requests.

use anyhow::Result;
use serde_json::json;
use tests::client::{NEW_PASSWORD, PASSWORD, Protocol, credentials};
use tests::postgres::lock_user_row;
use tests::replicas::Replicas;
use tests::{Edge, Store, on_both_stores};
use tokio::task::JoinSet;

on_both_stores!(
    a_user_registers_logs_in_reads_the_profile_and_logs_out,
    accounts_and_sessions_are_shared_by_all_replicas,
    one_of_a_hundred_concurrent_registrations_of_a_login_succeeds,
    one_of_a_hundred_concurrent_deletions_of_an_account_succeeds,
);

async fn a_user_registers_logs_in_reads_the_profile_and_logs_out(store: Store) -> Result<()> {
    let edge = Edge::builder(store).start().await?;
    for (protocol, login) in [(Protocol::Http1, "alice"), (Protocol::Http2, "bob")] {
        let client = edge.client_with_protocol(protocol)?;

        let registered = client.register(login).await?;
        assert_eq!(registered.status, 201, "{}", registered.text);
        let id = registered.json()["id"]
            .as_i64()
            .expect("the response has an id");

        let logged_in = client.login(login).await?;
        assert_eq!(logged_in.status, 200, "{}", logged_in.text);
        assert_eq!(logged_in.json()["token_type"], "bearer");
        let token = logged_in.json()["access_token"]
            .as_str()
            .expect("the response has an access token")
            .to_owned();

        let profile = client.get_with_token(&token, "/api/profile").await?;
        assert_eq!(profile.status, 200, "{}", profile.text);
        assert_eq!(profile.json()["id"], id);
        assert_eq!(profile.json()["login"], login);

        let logged_out = client.post_with_token(&token, "/api/logout", None).await?;
        assert_eq!(logged_out.status, 200, "{}", logged_out.text);
        assert_eq!(
            logged_out.json(),
            json!({"message": "Successfully logged out"})
        );

        let rejected = client.get_with_token(&token, "/api/profile").await?;
        assert_eq!(rejected.status, 401, "{}", rejected.text);
        assert_eq!(
            rejected.json(),
            json!({"detail": "Token not found or expired"})
        );

        let deleted = client
            .post("/api/delete", &credentials(login, PASSWORD))
            .await?;
        assert_eq!(deleted.status, 200, "{}", deleted.text);
        let rejected = client.login(login).await?;
        assert_eq!(rejected.status, 401);
        assert_eq!(rejected.json(), json!({"message": "Invalid credentials"}));
        assert_eq!(rejected.header("www-authenticate"), "Bearer");
    }
    Ok(())
}

async fn accounts_and_sessions_are_shared_by_all_replicas(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let (first, second) = (replicas.client(0)?, replicas.client(1)?);

    assert_eq!(first.register("alice").await?.status, 201);
    assert_eq!(second.register("alice").await?.status, 409);
    let token = second.register_and_login("alice").await?;
    let profile = first.get_with_token(&token, "/api/profile").await?;
    assert_eq!(
        (profile.status, &profile.json()["login"]),
        (200, &json!("alice"))
    );
    assert_eq!(
        second.get_with_token(&token, "/api/profile").await?.status,
        200
    );

    assert_eq!(
        first
            .post_with_token(&token, "/api/logout", None)
            .await?
            .status,
        200
    );
    let rejected = second.get_with_token(&token, "/api/profile").await?;
    assert_eq!(rejected.status, 401);
    assert_eq!(
        rejected.json(),
        json!({"detail": "Token not found or expired"})
    );

    let deleted = second
        .post("/api/delete", &credentials("alice", PASSWORD))
        .await?;
    assert_eq!(deleted.status, 200);
    assert_eq!(first.login("alice").await?.status, 401);
    Ok(())
}

/// Number of responses with the status `expected`.
fn count(statuses: &[u16], expected: u16) -> usize {
    statuses
        .iter()
        .filter(|status| **status == expected)
        .count()
}

async fn one_of_a_hundred_concurrent_registrations_of_a_login_succeeds(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let mut registrations = JoinSet::new();
    for number in 0..100 {
        let client = replicas.client(number % 2)?;
        registrations.spawn(async move {
            let registered = client.register("alice").await;
            registered.map(|response| response.status)
        });
    }
    let statuses: Vec<u16> = registrations
        .join_all()
        .await
        .into_iter()
        .collect::<Result<_>>()?;
    let (created, conflicts) = (count(&statuses, 201), count(&statuses, 409));
    assert_eq!((created, conflicts), (1, 99), "{statuses:?}");
    Ok(())
}

async fn one_of_a_hundred_concurrent_deletions_of_an_account_succeeds(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let token = replicas.client(0)?.register_and_login("alice").await?;
    let mut deletions = JoinSet::new();
    for number in 0..100 {
        let client = replicas.client(number % 2)?;
        let body = credentials("alice", PASSWORD);
        deletions.spawn(async move {
            let deleted = client.post("/api/delete", &body).await;
            deleted.map(|response| response.status)
        });
    }
    let statuses: Vec<u16> = deletions
        .join_all()
        .await
        .into_iter()
        .collect::<Result<_>>()?;
    let deleted = count(&statuses, 200);
    let rejected = count(&statuses, 401) + count(&statuses, 429);
    assert_eq!(deleted, 1, "{statuses:?}");
    assert_eq!(deleted + rejected, 100, "{statuses:?}");
    let client = replicas.client(1)?;
    assert_eq!(
        client.get_with_token(&token, "/api/profile").await?.status,
        401
    );
    Ok(())
}

#[tokio::test]
async fn a_deletion_whose_password_is_changed_meanwhile_deletes_nothing() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    let database = replicas
        .database
        .as_ref()
        .expect("the store has a database");
    let mut lock_holder = database.connect().await?;
    let mut change = lock_user_row(&mut lock_holder, "alice").await?;
    let deletion = tokio::spawn({
        let client = client.clone();
        async move {
            let body = credentials("alice", PASSWORD);
            client.post("/api/delete", &body).await
        }
    });
    // The password has been verified.
    let mut observer = database.connect().await?;
    database.wait_for_lock_wait(&mut observer).await?;
    sqlx::query("UPDATE users SET password_hash = $1 WHERE login = 'alice'")
        .bind(bcrypt::hash(NEW_PASSWORD, 4)?)
        .execute(&mut *change)
        .await?;
    change.commit().await?;
    let deleted = deletion.await??;
    assert_eq!(deleted.status, 401, "{}", deleted.text);
    let new_credentials = credentials("alice", NEW_PASSWORD);
    let login = client.post("/api/login", &new_credentials).await?;
    assert_eq!(login.status, 200, "{}", login.text);
    Ok(())
}
