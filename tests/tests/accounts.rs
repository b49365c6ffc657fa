//! Passwords, guesses, races for one account, and what operators do with accounts.

use std::io::Write;
use std::process::{Output, Stdio};

use anyhow::Result;
use serde_json::{Value, json};
use tests::client::{Client, PASSWORD, credentials};
use tests::replica::{Replicas, settings};
use tests::{Store, on_both_stores, wait};

on_both_stores!(
    a_changed_password_ends_every_other_session,
    common_passwords_and_the_login_itself_are_refused,
    guessing_is_stopped_after_ten_failures_on_all_replicas,
    of_a_hundred_registrations_of_one_login_one_succeeds,
    of_a_hundred_deletions_of_one_account_one_succeeds,
    an_operator_looks_after_accounts,
    what_an_operator_does_is_recorded,
    security_events_are_recorded_at_every_level,
    a_hash_of_another_cost_is_renewed_at_login,
    a_hash_that_is_renewed_meanwhile_stands_in_nobodys_way,
    a_password_is_changed_although_its_hash_is_renewed_meanwhile,
    a_wrong_password_takes_the_time_of_the_present_cost,
    who_has_no_hash_is_refused_like_anybody_until_it_is_mended,
);

async fn a_changed_password_ends_every_other_session(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let (first, second) = (replicas.client(0)?, replicas.client(1)?);
    let other = second.token("alice").await?;
    let token = first.token("alice").await?;
    assert_eq!(second.get_as(&other, "/api/profile").await?.status, 200);
    let change = async |current: &str, new: &str| {
        let body = json!({"current_password": current, "new_password": new});
        first.post_as(&token, "/api/password", Some(&body)).await
    };
    assert_eq!(change("wrong password", "another one 1").await?.status, 401);
    let refused = change(PASSWORD, "short").await?;
    assert_eq!(refused.status, 422);
    assert_eq!(
        refused.json()["detail"][0]["loc"],
        json!(["body", "new_password"])
    );

    assert_eq!(change(PASSWORD, "another one 1").await?.status, 200);
    assert_eq!(first.get_as(&token, "/api/profile").await?.status, 200);
    assert_eq!(second.get_as(&other, "/api/profile").await?.status, 401);
    assert_eq!(first.login("alice").await?.status, 401);
    let again = first
        .post("/api/login", &credentials("alice", "another one 1"))
        .await?;
    assert_eq!(again.status, 200);
    Ok(())
}

async fn common_passwords_and_the_login_itself_are_refused(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    for (password, told) in [
        ("password1", "Value error, Password is too common"),
        ("Iloveyou1", "Value error, Password is too common"),
        (
            "alice@example.org",
            "Value error, Password must not be the login",
        ),
    ] {
        let refused = client
            .post("/api/register", &credentials("alice@example.org", password))
            .await?;
        assert_eq!(refused.status, 422, "{password}");
        assert_eq!(refused.json()["detail"][0]["msg"], told);
        assert!(!refused.text.contains(password), "it is not sent back");
    }
    Ok(())
}

async fn guessing_is_stopped_after_ten_failures_on_all_replicas(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let (first, second) = (replicas.client(0)?, replicas.client(1)?);
    let token = first.token("alice").await?;
    for login in ["alice", "nobody"] {
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
            let refused = client.post("/api/login", &guess).await?;
            assert_eq!(refused.status, 429, "{login}");
            assert_eq!(refused.json(), json!({"detail": "Too many failed logins"}));
            let wait: u64 = refused.header("retry-after").parse()?;
            assert!((1..=900).contains(&wait), "{wait}");
        }
    }
    assert_eq!(
        first.login("alice").await?.status,
        429,
        "even the right one"
    );
    assert_eq!(
        first.get_as(&token, "/api/profile").await?.status,
        200,
        "sessions go on"
    );
    Ok(())
}

async fn of_a_hundred_registrations_of_one_login_one_succeeds(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let mut all = tokio::task::JoinSet::new();
    for number in 0..100 {
        let client = replicas.client(number % 2)?;
        all.spawn(async move { client.register("alice").await.map(|answer| answer.status) });
    }
    let statuses: Vec<u16> = all.join_all().await.into_iter().collect::<Result<_>>()?;
    let count = |wanted: u16| statuses.iter().filter(|status| **status == wanted).count();
    assert_eq!((count(201), count(409)), (1, 99), "{statuses:?}");
    Ok(())
}

async fn of_a_hundred_deletions_of_one_account_one_succeeds(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let token = replicas.client(0)?.token("alice").await?;
    let mut all = tokio::task::JoinSet::new();
    for number in 0..100 {
        let client = replicas.client(number % 2)?;
        let body = credentials("alice", PASSWORD);
        all.spawn(async move {
            client
                .post("/api/delete", &body)
                .await
                .map(|one| one.status)
        });
    }
    let statuses: Vec<u16> = all.join_all().await.into_iter().collect::<Result<_>>()?;
    let count = |wanted: u16| statuses.iter().filter(|status| **status == wanted).count();
    assert_eq!(count(200), 1, "{statuses:?}");
    assert_eq!(count(200) + count(401) + count(429), 100, "{statuses:?}");
    let client = replicas.client(1)?;
    assert_eq!(client.get_as(&token, "/api/profile").await?.status, 401);
    Ok(())
}

/// Runs `auth-api user …` with a line on its standard input; its output, or what went wrong.
fn operator(replicas: &Replicas, arguments: &[&str], input: &str) -> Result<String, String> {
    let output = output_of_operator(replicas, arguments, input);
    let text = |bytes| String::from_utf8(bytes).expect("it prints text");
    if output.status.success() {
        Ok(text(output.stdout))
    } else {
        Err(text(output.stderr))
    }
}

fn output_of_operator(replicas: &Replicas, arguments: &[&str], input: &str) -> Output {
    let mut child = replicas
        .command("auth-api")
        .arg("user")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    let _ = writeln!(stdin, "{input}");
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

async fn an_operator_looks_after_accounts(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let client = replicas.client(0)?;
    let token = client.token("alice").await?;
    assert_eq!(client.get_as(&token, "/api/profile").await?.status, 200);
    let run = |arguments: &[&str], input: &str| operator(&replicas, arguments, input);

    assert!(run(&["create", "bob"], PASSWORD).is_ok_and(|told| told.contains("made account")));
    assert!(run(&["create", "bob"], PASSWORD).is_err_and(|told| told.contains("taken")));
    assert!(run(&["create", "carol"], "short").is_err_and(|told| told.contains("at least 8")));
    let list = run(&["list"], "").expect("a list");
    assert_eq!(list.lines().count(), 2, "{list}");
    assert!(run(&["show", "alice"], "").is_ok_and(|told| told.contains("session ")));
    assert!(run(&["show", "nobody"], "").is_err());
    assert_eq!(client.login("bob").await?.status, 200);

    run(&["disable", "alice"], "").expect("it is disabled");
    assert_eq!(client.get_as(&token, "/api/profile").await?.status, 401);
    assert_eq!(client.login("alice").await?.status, 401);
    run(&["enable", "alice"], "").expect("it is enabled");
    assert_eq!(client.login("alice").await?.status, 200);

    run(&["set-password", "alice"], "another one 1").expect("it is set");
    assert_eq!(client.login("alice").await?.status, 401);
    let again = client
        .post("/api/login", &credentials("alice", "another one 1"))
        .await?;
    assert_eq!(again.status, 200);
    run(&["delete", "alice"], "").expect("it is deleted");
    assert!(run(&["end-sessions", "bob"], "").is_ok_and(|told| told.contains("sessions ended: 1")));
    Ok(())
}

/// A replica that hashes at `cost`, where alice was registered at a lower one and is logged in; a
/// client of it, and her token.
async fn with_another_cost(store: Store, cost: &str) -> Result<(Replicas, Client, String)> {
    let mut replicas = Replicas::start(store, 1).await?;
    let token = replicas.client(0)?.token("alice").await?;
    replicas.all[0].process.stop()?;
    replicas.set("BCRYPT_COST", cost);
    replicas.add()?;
    replicas.ready(1).await?;
    let client = replicas.client(1)?;
    Ok((replicas, client, token))
}

async fn a_hash_of_another_cost_is_renewed_at_login(store: Store) -> Result<()> {
    let (_replicas, client, _) = with_another_cost(store, "5").await?;
    assert_eq!(client.login("alice").await?.status, 200);
    assert_eq!(client.login("alice").await?.status, 200);
    Ok(())
}

async fn a_hash_that_is_renewed_meanwhile_stands_in_nobodys_way(store: Store) -> Result<()> {
    for _ in 0..3 {
        let (_replicas, client, _) = with_another_cost(store, "8").await?;
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let client = client.clone();
            all.spawn(async move { client.login("alice").await });
        }
        for answer in all.join_all().await {
            let answer = answer?;
            assert_eq!(answer.status, 200, "{}", answer.text);
        }
    }
    Ok(())
}

async fn a_password_is_changed_although_its_hash_is_renewed_meanwhile(store: Store) -> Result<()> {
    for _ in 0..3 {
        let (_replicas, client, token) = with_another_cost(store, "8").await?;
        let change = json!({"current_password": PASSWORD, "new_password": "another one 1"});
        let (login, changed) = tokio::join!(
            client.login("alice"),
            client.post_as(&token, "/api/password", Some(&change))
        );
        let changed = changed?;
        assert_eq!(changed.status, 200, "{}", changed.text);
        assert!([200, 401].contains(&login?.status));
        let new = credentials("alice", "another one 1");
        assert_eq!(client.post("/api/login", &new).await?.status, 200);
    }
    Ok(())
}

/// Hashes that a replica has made.
async fn hashed(replicas: &Replicas, number: usize) -> Result<f64> {
    let count = "auth_api_hashing_wait_seconds_count";
    Ok(replicas
        .metric(number, count, &[])
        .await?
        .unwrap_or_default())
}

async fn a_wrong_password_takes_the_time_of_the_present_cost(store: Store) -> Result<()> {
    let (replicas, client, _) = with_another_cost(store, "7").await?;
    // Time is counted in hashes: costs 4 (the account's own), 4, 5 and 6 together are one of 7.
    for (login, hashes) in [("alice", 4.0), ("nobody", 1.0)] {
        let before = hashed(&replicas, 1).await?;
        let wrong = credentials(login, "wrong password");
        assert_eq!(client.post("/api/login", &wrong).await?.status, 401);
        let after = hashed(&replicas, 1).await?;
        assert!(
            (after - before - hashes).abs() < 0.5,
            "{login}: {before} {after}"
        );
    }
    Ok(())
}

async fn who_has_no_hash_is_refused_like_anybody_until_it_is_mended(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    client.token("alice").await?;
    replicas
        .execute("UPDATE users SET password_hash = 'imported'")
        .await?;
    let before = hashed(&replicas, 0).await?;
    let refused = client.login("alice").await?;
    assert_eq!(refused.status, 401);
    assert_eq!(refused.json(), json!({"message": "Invalid credentials"}));
    let after = hashed(&replicas, 0).await?;
    assert!((after - before - 1.0).abs() < 0.5, "{before} {after}");
    assert!(replicas.logs().contains("is no bcrypt hash"));
    assert!(operator(&replicas, &["set-password", "alice"], PASSWORD).is_ok());
    assert_eq!(client.login("alice").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn the_queue_is_told_as_it_is_when_its_clients_have_left() -> Result<()> {
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
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let client = client.clone();
        all.spawn(async move { client.login("alice").await });
    }
    wait::until("a queue", async || depth().await > Some(0.0)).await?;
    all.shutdown().await;
    wait::until("no queue", async || depth().await == Some(0.0)).await
}

async fn what_an_operator_does_is_recorded(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    for (task, input, events) in [
        ("create", PASSWORD, vec!["register"]),
        (
            "set-password",
            "another one 1",
            vec!["password_set", "logout_all"],
        ),
        ("disable", "", vec!["disabled", "logout_all"]),
        ("enable", "", vec!["enabled"]),
        ("end-sessions", "", vec!["logout_all"]),
        ("delete", "", vec!["logout_all", "delete"]),
    ] {
        let output = output_of_operator(&replicas, &[task, "alice"], input);
        let recorded = String::from_utf8(output.stderr)?;
        let recorded: Vec<Value> = recorded
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()?;
        let named: Vec<_> = recorded.iter().map(|line| &line["event"]).collect();
        assert_eq!(named, events, "{task}");
        for line in &recorded {
            assert_eq!(
                (&line["target"], &line["login"]),
                (&json!("audit"), &json!("alice"))
            );
            assert!(line["operator"].is_number(), "{line}");
        }
    }
    Ok(())
}

async fn security_events_are_recorded_at_every_level(store: Store) -> Result<()> {
    let settings = settings([("LOG_LEVEL", "ERROR".to_owned())]);
    let replicas = Replicas::start_with(store, 1, settings).await?;
    assert_eq!(replicas.client(0)?.login("alice").await?.status, 401);
    wait::until("the audit", async || {
        replicas.logs().contains("\"login_failed\"")
    })
    .await?;
    assert!(!replicas.logs().contains("\"INFO\",\"message\":\"request\""));
    Ok(())
}

#[tokio::test]
async fn an_operator_deletes_nothing_while_sessions_cannot_be_ended() -> Result<()> {
    let mut replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let token = replicas.client(0)?.token("alice").await?;
    replicas.redis.as_mut().expect("it has one").stop();
    assert!(operator(&replicas, &["delete", "alice"], "").is_err());
    replicas.redis.as_mut().expect("it has one").resume()?;
    assert!(operator(&replicas, &["show", "alice"], "").is_ok());
    assert!(operator(&replicas, &["delete", "alice"], "").is_ok());
    let client = replicas.client(0)?;
    wait::until("Redis to be used again", async || {
        let answer = client.get_as(&token, "/api/sessions").await;
        answer.is_ok_and(|answer| answer.status == 401)
    })
    .await
}
