//! Passwords: changes, rules, login throttling, and bcrypt hashes of another cost or none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use reqwest::Method;
use serde_json::json;
use tests::client::{Client, NEW_PASSWORD, PASSWORD, Response, credentials, send};
use tests::replicas::Replicas;
use tests::settings::settings;
use tests::{Store, on_both_stores, wait};
use tokio::task::JoinSet;

on_both_stores!(
    a_changed_password_ends_every_other_session,
    no_request_of_the_session_that_changes_the_password_is_rejected,
    common_passwords_and_the_login_itself_are_rejected,
    login_is_throttled_on_all_replicas_after_ten_failures,
    a_password_hash_of_another_cost_is_upgraded_at_login,
    concurrent_logins_succeed_while_the_hash_is_upgraded,
    a_password_change_succeeds_while_the_hash_is_upgraded,
    a_password_matches_in_every_normalization_form,
    a_password_hashed_in_another_normalization_form_matches_and_is_hashed_anew,
    a_password_with_nul_matches_nothing,
    a_password_that_the_python_service_cut_logs_in_and_no_longer_one_is_accepted,
    an_account_without_a_valid_hash_cannot_log_in_until_its_password_is_set,
    every_login_that_fails_is_one_hash_and_one_response,
);

async fn a_changed_password_ends_every_other_session(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let (first, second) = (replicas.client(0)?, replicas.client(1)?);
    let other_token = second.register_and_login("alice").await?;
    let token = first.register_and_login("alice").await?;
    assert_eq!(
        second
            .get_with_token(&other_token, "/api/profile")
            .await?
            .status,
        200
    );
    let change = async |current: &str, new: &str| {
        let body = json!({"current_password": current, "new_password": new});
        first
            .post_with_token(&token, "/api/password", Some(&body))
            .await
    };
    assert_eq!(change("wrong password", NEW_PASSWORD).await?.status, 401);
    let rejected = change(PASSWORD, "short").await?;
    assert_eq!(rejected.status, 422);
    assert_eq!(
        rejected.json()["detail"][0]["loc"],
        json!(["body", "new_password"])
    );

    assert_eq!(change(PASSWORD, NEW_PASSWORD).await?.status, 200);
    assert_eq!(
        first.get_with_token(&token, "/api/profile").await?.status,
        200
    );
    assert_eq!(
        second
            .get_with_token(&other_token, "/api/profile")
            .await?
            .status,
        401
    );
    assert_eq!(first.login("alice").await?.status, 401);
    let new_login = first
        .post("/api/login", &credentials("alice", NEW_PASSWORD))
        .await?;
    assert_eq!(new_login.status, 200);
    Ok(())
}

async fn no_request_of_the_session_that_changes_the_password_is_rejected(
    store: Store,
) -> Result<()> {
    const CHANGES: usize = 40;
    let replicas = Replicas::start(store, 2).await?;
    let token = replicas.client(0)?.register_and_login("alice").await?;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for number in 0..8 {
        let (client, token) = (replicas.client(number % 2)?, token.clone());
        let is_over = Arc::clone(&is_over);
        readers.spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                let profile = client.get_with_token(&token, "/api/profile").await?;
                ensure!(profile.status == 200, "{}", profile.text);
            }
            Ok(())
        });
    }
    let client = replicas.client(0)?;
    let password = |number: usize| match number {
        0 => PASSWORD.to_owned(),
        _ => format!("{PASSWORD} {number}"),
    };
    for number in 0..CHANGES {
        let body = json!({
            "current_password": password(number),
            "new_password": password(number + 1),
        });
        let changed = client
            .post_with_token(&token, "/api/password", Some(&body))
            .await?;
        assert_eq!(changed.status, 200, "{}", changed.text);
    }
    is_over.store(true, Ordering::Relaxed);
    readers.join_all().await.into_iter().collect()
}

async fn common_passwords_and_the_login_itself_are_rejected(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    for (password, message) in [
        ("password1", "Value error, Password is too common"),
        ("Iloveyou1", "Value error, Password is too common"),
        (
            "alice@example.org",
            "Value error, Password must not be the login",
        ),
        (
            "ALICE@Example.ORG",
            "Value error, Password must not be the login",
        ),
        (
            // Full-width letters, which compatibility normalization maps to ASCII.
            "ａlice@example.org",
            "Value error, Password must not be the login",
        ),
    ] {
        let rejected = client
            .post("/api/register", &credentials("alice@example.org", password))
            .await?;
        assert_eq!(rejected.status, 422, "{password}");
        assert_eq!(rejected.json()["detail"][0]["msg"], message);
        assert!(
            !rejected.text.contains(password),
            "the response contains the password"
        );
    }
    Ok(())
}

async fn login_is_throttled_on_all_replicas_after_ten_failures(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let (first, second) = (replicas.client(0)?, replicas.client(1)?);
    let token = first.register_and_login("alice").await?;
    for login in ["alice", "unknown"] {
        let guess = credentials(login, "wrong password");
        for number in 0..10 {
            let client = if number % 2 == 0 { &first } else { &second };
            assert_eq!(
                client.post("/api/login", &guess).await?.status,
                401,
                "{login} {number}"
            );
        }
        for client in [&first, &second] {
            let rejected = client.post("/api/login", &guess).await?;
            assert_eq!(rejected.status, 429, "{login}");
            assert_eq!(rejected.json(), json!({"detail": "Too many failed logins"}));
            let retry_after: u64 = rejected.header("retry-after").parse()?;
            assert!((1..=900).contains(&retry_after), "{retry_after}");
        }
    }
    assert_eq!(
        first.login("alice").await?.status,
        429,
        "the correct password is throttled too"
    );
    assert_eq!(
        first.get_with_token(&token, "/api/profile").await?.status,
        200,
        "existing sessions stay valid"
    );
    Ok(())
}

/// Starts a replica with the bcrypt cost `cost`, after alice was registered and logged in at a
/// lower one. Returns it with a client of it and her access token.
async fn start_with_higher_cost(store: Store, cost: &str) -> Result<(Replicas, Client, String)> {
    let mut replicas = Replicas::start(store, 1).await?;
    let token = replicas.client(0)?.register_and_login("alice").await?;
    replicas.instances[0].process.terminate()?;
    replicas.set("BCRYPT_COST", cost);
    replicas.start_another()?;
    replicas.wait_until_ready(1).await?;
    let client = replicas.client(1)?;
    Ok((replicas, client, token))
}

async fn a_password_hash_of_another_cost_is_upgraded_at_login(store: Store) -> Result<()> {
    let (_replicas, client, _) = start_with_higher_cost(store, "5").await?;
    assert_eq!(client.login("alice").await?.status, 200);
    assert_eq!(client.login("alice").await?.status, 200);
    Ok(())
}

async fn concurrent_logins_succeed_while_the_hash_is_upgraded(store: Store) -> Result<()> {
    for _ in 0..3 {
        let (_replicas, client, _) = start_with_higher_cost(store, "8").await?;
        let mut logins = JoinSet::new();
        for _ in 0..8 {
            let client = client.clone();
            logins.spawn(async move { client.login("alice").await });
        }
        for response in logins.join_all().await {
            let response = response?;
            assert_eq!(response.status, 200, "{}", response.text);
        }
    }
    Ok(())
}

async fn a_password_change_succeeds_while_the_hash_is_upgraded(store: Store) -> Result<()> {
    for _ in 0..3 {
        let (_replicas, client, token) = start_with_higher_cost(store, "8").await?;
        let change = json!({"current_password": PASSWORD, "new_password": NEW_PASSWORD});
        let (login, changed) = tokio::join!(
            client.login("alice"),
            client.post_with_token(&token, "/api/password", Some(&change))
        );
        let changed = changed?;
        assert_eq!(changed.status, 200, "{}", changed.text);
        assert!([200, 401].contains(&login?.status));
        let new_credentials = credentials("alice", NEW_PASSWORD);
        let new_login = client.post("/api/login", &new_credentials).await?;
        assert_eq!(new_login.status, 200);
    }
    Ok(())
}

/// Number of bcrypt hashes that a replica has computed.
async fn hash_count(replicas: &Replicas, number: usize) -> Result<f64> {
    let name = "auth_api_hashing_wait_seconds_count";
    Ok(replicas
        .metric(number, name, &[])
        .await?
        .unwrap_or_default())
}

async fn an_account_without_a_valid_hash_cannot_log_in_until_its_password_is_set(
    store: Store,
) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    client.register_and_login("alice").await?;
    replicas
        .execute("UPDATE users SET password_hash = 'imported'")
        .await?;
    let before = hash_count(&replicas, 0).await?;
    let rejected = client.login("alice").await?;
    assert_eq!(rejected.status, 401);
    assert_eq!(rejected.json(), json!({"message": "Invalid credentials"}));
    let after = hash_count(&replicas, 0).await?;
    assert!((after - before - 1.0).abs() < 0.5, "{before} {after}");
    assert!(replicas.logs().contains("is not a bcrypt hash"));
    let set_password = replicas.user_command(&["set-password", "alice"], PASSWORD)?;
    assert!(set_password.status.success());
    assert_eq!(client.login("alice").await?.status, 200);
    Ok(())
}

/// Servers have skipped the hash for empty and long passwords, for accounts without a password or that are disabled, and for
/// logins that no account can have (`docs/known-attacks.md`).
async fn every_login_that_fails_is_one_hash_and_one_response(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    for login in ["alice", "disabled", "damaged"] {
        client.register(login).await?;
    }
    let disabled = replicas.user_command(&["disable", "disabled"], "")?;
    ensure!(disabled.status.success(), "{disabled:?}");
    replicas
        .execute("UPDATE users SET password_hash = '!' WHERE login = 'damaged'")
        .await?;
    let (long_login, long_password) = ("x".repeat(256), "x".repeat(60_000));
    let mut first_response = None;
    for (login, password) in [
        ("alice", "a wrong password"),
        ("alice", ""),
        ("alice", &*long_password),
        ("alice", "a wrong\0 password"),
        ("alice", "a wrong p\u{e4}ssword"),
        ("unknown", PASSWORD),
        ("unknown", ""),
        ("unknown", &*long_password),
        ("disabled", PASSWORD),
        ("damaged", PASSWORD),
        ("", PASSWORD),
        (&*long_login, PASSWORD),
        ("a\0b", PASSWORD),
    ] {
        let before = hash_count(&replicas, 0).await?;
        let mut response = client
            .post("/api/login", &credentials(login, password))
            .await?;
        response.headers.remove("date");
        let response = (response.status, response.headers, response.text);
        let first = first_response.get_or_insert_with(|| response.clone());
        assert_eq!((first.0, &response), (401, &*first), "{login:?}");
        let hashes = hash_count(&replicas, 0).await? - before;
        assert!((hashes - 1.0).abs() < 0.5, "{login:?}: {hashes} hashes");
    }
    Ok(())
}

#[tokio::test]
async fn the_hashing_queue_depth_returns_to_zero_after_its_clients_disconnect() -> Result<()> {
    let settings = settings([
        ("BCRYPT_COST", "13".to_owned()),
        ("HASHING_THREADS", "1".to_owned()),
    ]);
    let replicas = Replicas::start_with(Store::Embedded, 1, settings).await?;
    let depth = async || {
        let name = "auth_api_hashing_queue_depth";
        replicas.metric(0, name, &[]).await.ok().flatten()
    };
    let client = replicas.client(0)?;
    let mut logins = JoinSet::new();
    for _ in 0..4 {
        let client = client.clone();
        logins.spawn(async move { client.login("alice").await });
    }
    wait::until("the queue to fill", async || depth().await > Some(0.0)).await?;
    logins.shutdown().await;
    wait::until("the queue to empty", async || depth().await == Some(0.0)).await
}

/// Sends logins of unknown names until the value is dropped, as many at once as `concurrency`.
struct LoginStorm(Vec<tokio::task::JoinHandle<()>>);

impl LoginStorm {
    fn start(client: &Client, address: &'static str, concurrency: usize) -> Self {
        let log_in_repeatedly = |client: Client, task: usize| async move {
            // A name that fails ten times is locked, and then costs no hash.
            for attempt in 0_u64.. {
                let login = format!("mallory-{task}-{attempt}");
                let _ = log_in_from(&client, address, &login).await;
            }
        };
        let tasks =
            (0..concurrency).map(|task| tokio::spawn(log_in_repeatedly(client.clone(), task)));
        Self(tasks.collect())
    }
}

impl Drop for LoginStorm {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// Logs `login` in as a client whose address the gateway has forwarded.
async fn log_in_from(client: &Client, address: &str, login: &str) -> Result<Response> {
    let request = client
        .request(Method::POST, "/api/login")
        .header("x-forwarded-for", address)
        .json(&credentials(login, PASSWORD));
    send(request).await
}

#[tokio::test]
async fn a_client_that_fills_the_hashing_queue_takes_no_place_from_others() -> Result<()> {
    let settings = settings([
        ("BCRYPT_COST", "10".to_owned()),
        ("HASHING_THREADS", "1".to_owned()),
        ("HASHING_MAX_WAIT", "0.3".to_owned()),
    ]);
    let replicas = Replicas::start_with(Store::Embedded, 1, settings).await?;
    let client = replicas.client(0)?;
    assert_eq!(client.register("alice").await?.status, 201);
    let storm = LoginStorm::start(&client, "2001:db8::1", 100);
    wait::until("the queue to be full", async || {
        let refused = replicas.metric(0, "auth_api_hashing_refused_total", &[]);
        refused.await.ok().flatten() > Some(0.0)
    })
    .await?;
    for number in 1..=10 {
        let address = format!("2001:db8:0:{number}::1");
        let response = log_in_from(&client, &address, "alice").await?;
        assert_eq!(response.status, 200, "{number}: {}", response.text);
    }
    drop(storm);
    Ok(())
}

/// Password in normalization forms C and D.
const NFC_PASSWORD: &str = "p\u{e4}ssw\u{f6}rter 1";
const NFD_PASSWORD: &str = "pa\u{308}sswo\u{308}rter 1";

async fn a_password_matches_in_every_normalization_form(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    for (login, registered) in [("alice", NFC_PASSWORD), ("bob", NFD_PASSWORD)] {
        let registration = client
            .post("/api/register", &credentials(login, registered))
            .await?;
        assert_eq!(registration.status, 201, "{}", registration.text);
        for presented in [NFC_PASSWORD, NFD_PASSWORD] {
            let response = client
                .post("/api/login", &credentials(login, presented))
                .await?;
            assert_eq!(response.status, 200, "{login}: {presented:?}");
        }
    }
    Ok(())
}

async fn a_password_hashed_in_another_normalization_form_matches_and_is_hashed_anew(
    store: Store,
) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    let hash = bcrypt::hash(NFD_PASSWORD, 4)?;
    let set_hash = format!("UPDATE users SET password_hash = '{hash}'");
    for presented in [NFD_PASSWORD, NFC_PASSWORD] {
        replicas.execute(set_hash.as_str()).await?;
        let wrong = credentials("alice", "pa\u{308}sswo\u{308}rter 2");
        assert_eq!(client.post("/api/login", &wrong).await?.status, 401);
        let right = credentials("alice", presented);
        assert_eq!(client.post("/api/login", &right).await?.status, 200);
        // Succeeds only if the statement finds the hash that was stored before.
        let is_replaced =
            format!("UPDATE users SET login = 'replaced' WHERE password_hash <> '{hash}'");
        replicas.execute(is_replaced).await?;
        let renamed = credentials("replaced", presented);
        assert_eq!(client.post("/api/login", &renamed).await?.status, 200);
        replicas.execute("UPDATE users SET login = 'alice'").await?;
    }
    Ok(())
}

async fn a_password_with_nul_matches_nothing(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    for suffix in ["\0", "\0anything", &format!("\0{PASSWORD}")] {
        let presented = format!("{PASSWORD}{suffix}");
        let body = credentials("alice", &presented);
        let login = client.post("/api/login", &body).await?;
        assert_eq!(login.status, 401, "{presented:?}");
        let change = json!({"current_password": presented, "new_password": NEW_PASSWORD});
        let changed = client
            .post_with_token(&token, "/api/password", Some(&change))
            .await?;
        assert_eq!(changed.status, 401, "{presented:?}");
    }
    Ok(())
}

async fn a_password_that_the_python_service_cut_logs_in_and_no_longer_one_is_accepted(
    store: Store,
) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    let kept = "0123456789 ".repeat(7)[..72].to_owned();
    let long = format!("{kept} and more");
    // bcrypt reads 72 bytes, as the Python service let it.
    let hash = bcrypt::hash(&kept, 5)?;
    replicas
        .execute(format!("UPDATE users SET password_hash = '{hash}'"))
        .await?;
    let right = credentials("alice", &long);
    // The first login hashes the password anew, since the stored hash has another cost.
    for _ in 0..2 {
        let login = client.post("/api/login", &right).await?;
        assert_eq!(login.status, 200);
    }
    let other = format!("{}x and more", &kept[..71]);
    let wrong = credentials("alice", &other);
    assert_eq!(client.post("/api/login", &wrong).await?.status, 401);

    let token = client.post("/api/login", &right).await?.access_token()?;
    for (new, status) in [(format!("{kept}x"), 422), (kept.clone(), 200)] {
        let change = json!({"current_password": long, "new_password": new});
        let changed = client
            .post_with_token(&token, "/api/password", Some(&change))
            .await?;
        assert_eq!(changed.status, status, "{}", changed.text);
    }
    let registered = client
        .post("/api/register", &credentials("bob", &long))
        .await?;
    assert_eq!(registered.status, 422, "{}", registered.text);
    Ok(())
}
