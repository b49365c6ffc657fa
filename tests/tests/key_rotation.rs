//! Rotation of `SECRET_KEY` and of `SIGNING_KEY` by rolling restarts: no token that any replica issued is refused,
//! although replicas sign with different keys meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::client::{Client, Response};
use tests::replicas::Replicas;
use tests::{Store, on_both_stores, signing_key, wait};
use tokio::task::JoinSet;

on_both_stores!(
    no_token_is_refused_while_the_secret_key_is_rotated,
    no_token_is_refused_while_signing_keys_are_introduced_rotated_and_removed,
);

const OLD_KEY: &str = "the old key of replicas, 32 bytes or longer";
const NEW_KEY: &str = "the-new-key-of-replicas-32-bytes-or-longer";
const USERS: usize = 3;

/// Requests of users, each on both replicas alternately.
struct Load {
    /// Clients of the two running replicas, which are replaced one by one.
    replicas: Mutex<[Client; 2]>,
    stop: AtomicBool,
    /// Rounds that users have completed.
    rounds: AtomicU64,
}

impl Load {
    /// Repeats a request to the replica at `index` until it is answered: one that is being replaced
    /// may close its connections.
    async fn send<F>(&self, index: usize, request: impl Fn(Client) -> F) -> Response
    where
        F: Future<Output = Result<Response>>,
    {
        loop {
            let client = self.replicas.lock().expect("no panic")[index].clone();
            if let Ok(response) = request(client).await {
                return response;
            }
        }
    }

    async fn check_access_token(&self, tokens: &Value) -> Result<()> {
        let token = tokens["access_token"].as_str().context("an access token")?;
        for index in 0..2 {
            let profile = async |client: Client| client.get_with_token(token, "/api/profile").await;
            let response = self.send(index, profile).await;
            ensure!(response.status == 200, "profile: {}", response.text);
        }
        Ok(())
    }

    /// Logs in, and exchanges refresh tokens at each replica in turn, until the load is stopped.
    async fn run_user(&self, login: &str) -> Result<()> {
        let begin_session = async |client: Client| client.login(login).await;
        let first = self.send(0, begin_session).await.json();
        let mut tokens = first.clone();
        while !self.stop.load(Ordering::Relaxed) {
            for index in 0..2 {
                let body = json!({"refresh_token": tokens["refresh_token"]});
                let refresh = async |client: Client| client.post("/api/refresh", &body).await;
                let response = self.send(index, refresh).await;
                ensure!(response.status == 200, "refresh: {}", response.text);
                tokens = response.json();
                self.check_access_token(&tokens).await?;
                self.check_access_token(&first).await?;
                let new = self.send(index, begin_session).await.json();
                self.check_access_token(&new).await?;
            }
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Starts a replica with `settings` in the place of each running one.
async fn roll(replicas: &mut Replicas, load: &Load, settings: &[(&str, &str)]) -> Result<()> {
    for (name, value) in settings {
        replicas.set(name, value);
    }
    for index in 0..2 {
        replicas.start_another()?;
        replicas.wait_until_ready(2).await?;
        let mut old = replicas.instances.swap_remove(index);
        load.replicas.lock().expect("no panic")[index] = replicas.client(index)?;
        let is_finished = {
            // Every user meets every mixture of replicas.
            let rounds = load.rounds.load(Ordering::Relaxed);
            move || load.rounds.load(Ordering::Relaxed) >= rounds + 2 * USERS as u64
        };
        wait::until("users to use the replicas", async || is_finished()).await?;
        tokio::task::spawn_blocking(move || old.process.terminate()).await??;
    }
    Ok(())
}

/// Rolls the replicas through `steps` while users are active, none of whose tokens may be refused.
async fn roll_under_load(store: Store, steps: &[&[(&str, &str)]]) -> Result<()> {
    let settings = vec![("SECRET_KEY".to_owned(), OLD_KEY.to_owned())];
    let mut replicas = Replicas::start_with(store, 2, settings).await?;
    let client = replicas.client(0)?;
    let load = Arc::new(Load {
        replicas: Mutex::new([client.clone(), replicas.client(1)?]),
        stop: AtomicBool::new(false),
        rounds: AtomicU64::new(0),
    });
    let mut users = JoinSet::new();
    for number in 0..USERS {
        let (load, login) = (Arc::clone(&load), format!("user {number}"));
        client.register(&login).await?;
        users.spawn(async move { load.run_user(&login).await });
    }
    let rotation = async {
        for settings in steps {
            roll(&mut replicas, &load, settings).await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        rotated = rotation => rotated?,
        Some(failed) = users.join_next() => failed??,
    }
    load.stop.store(true, Ordering::Relaxed);
    while let Some(user) = users.join_next().await {
        user??;
    }
    Ok(())
}

async fn no_token_is_refused_while_the_secret_key_is_rotated(store: Store) -> Result<()> {
    let announced = [("SECRET_KEY_NEXT", NEW_KEY)];
    let signing = [
        ("SECRET_KEY", NEW_KEY),
        ("SECRET_KEY_PREVIOUS", OLD_KEY),
        ("SECRET_KEY_NEXT", ""),
    ];
    roll_under_load(store, &[&announced, &signing]).await
}

/// From HS256 to a key, to another key, and back, as docs/operations.md describes it.
async fn no_token_is_refused_while_signing_keys_are_introduced_rotated_and_removed(
    store: Store,
) -> Result<()> {
    let (first, second) = (signing_key::generate()?, signing_key::generate()?);
    let both = format!("{first}{second}");
    let keys = |current, next, previous| {
        [
            ("SIGNING_KEY", current),
            ("SIGNING_KEY_NEXT", next),
            ("SIGNING_KEY_PREVIOUS", previous),
        ]
    };
    let steps = [
        keys("", &first, ""),
        keys(&first, "", ""),
        keys(&first, &second, ""),
        keys(&second, "", &first),
        keys("", "", &both),
    ];
    roll_under_load(store, &steps.each_ref().map(<[_; 3]>::as_slice)).await
}

#[tokio::test]
async fn a_token_of_a_removed_key_is_refused() -> Result<()> {
    let settings = vec![("SECRET_KEY".to_owned(), OLD_KEY.to_owned())];
    let mut replicas = Replicas::start_with(Store::Embedded, 1, settings).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    replicas.set("SECRET_KEY", NEW_KEY);
    replicas.start_another()?;
    replicas.wait_until_ready(1).await?;
    let profile = replicas
        .client(1)?
        .get_with_token(&token, "/api/profile")
        .await?;
    assert_eq!(profile.status, 401);
    Ok(())
}
