//! Stored bcrypt hashes of any cost: a login reveals nothing about them, and none blocks other logins.

use std::time::Duration;

use anyhow::{Context, Result};
use tests::client::{Client, credentials};
use tests::replicas::Replicas;
use tests::settings::{Settings, settings};
use tests::{Store, on_both_stores, wait};

on_both_stores!(
    a_hash_past_the_maximum_cost_is_refused_and_blocks_no_other_login,
    a_wrong_password_costs_the_same_whatever_the_cost_of_the_stored_hash,
);

/// Number of failed logins whose CPU time is measured, below the limit of the throttle.
const ATTEMPTS: u32 = 8;

async fn a_hash_past_the_maximum_cost_is_refused_and_blocks_no_other_login(
    store: Store,
) -> Result<()> {
    let settings = settings([
        ("HASHING_THREADS", "1".to_owned()),
        ("BCRYPT_MAX_COST", "10".to_owned()),
    ]);
    let replicas = Replicas::start_with(store, 1, settings).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    client.register("bob").await?;
    for cost in ["11", "31"] {
        set_cost(&replicas, "alice", cost).await?;
        let login = tokio::time::timeout(Duration::from_secs(10), client.login("alice"));
        let login = login.await.context("the login is blocked")??;
        assert_eq!(login.status, 401, "{}", login.text);
        assert_eq!(client.login("bob").await?.status, 200);
    }
    wait::until("the hash is logged", async || {
        replicas.logs().contains("BCRYPT_MAX_COST")
    })
    .await
}

async fn a_wrong_password_costs_the_same_whatever_the_cost_of_the_stored_hash(
    store: Store,
) -> Result<()> {
    let mut replicas = Replicas::start_with(store, 1, single_thread("8")).await?;
    for login in ["equal", "low", "high", "disabled", "invalid", "excessive"] {
        replicas.client(0)?.register(login).await?;
    }
    set_cost(&replicas, "low", "04").await?;
    set_cost(&replicas, "high", "11").await?;
    set_cost(&replicas, "excessive", "20").await?;
    replicas
        .execute("UPDATE users SET password_hash = 'imported' WHERE login = 'invalid'")
        .await?;
    let disable = replicas.user_command(&["disable", "disabled"], "")?;
    assert!(disable.status.success());
    // A replica knows the costliest hash before its first login.
    replicas.start_another()?;
    replicas.wait_until_ready(1).await?;
    let client = replicas.client(1)?;
    let unknown = cpu_seconds_of_failures(&replicas, &client, "unknown").await?;
    for login in ["equal", "low", "high", "disabled", "invalid", "excessive"] {
        let measured = cpu_seconds_of_failures(&replicas, &client, login).await?;
        let ratio = measured / unknown;
        assert!(
            (0.6..1.6).contains(&ratio),
            "{login} {measured} s, unknown login {unknown} s"
        );
    }
    Ok(())
}

fn single_thread(cost: &str) -> Settings {
    settings([
        ("HASHING_THREADS", "1".to_owned()),
        ("BCRYPT_COST", cost.to_owned()),
    ])
}

/// Changes the cost in the hash of `login`, which then matches no password.
async fn set_cost(replicas: &Replicas, login: &str, cost: &str) -> Result<()> {
    let statement = format!(
        "UPDATE users SET password_hash = '$2b${cost}$' || substr(password_hash, 8) WHERE login = '{login}'"
    );
    replicas.execute(statement).await
}

/// Returns the CPU time of the second replica for [`ATTEMPTS`] wrong passwords, each one hashing job.
async fn cpu_seconds_of_failures(replicas: &Replicas, client: &Client, login: &str) -> Result<f64> {
    let jobs = async || {
        let name = "auth_api_hashing_wait_seconds_count";
        let count = replicas.metric(1, name, &[]).await?;
        Ok::<_, anyhow::Error>(count.unwrap_or_default())
    };
    let process = &replicas.instances[1].process;
    let (jobs_before, cpu_before) = (jobs().await?, process.cpu_time()?);
    for _ in 0..ATTEMPTS {
        let wrong = credentials(login, "a wrong password");
        let rejected = client.post("/api/login", &wrong).await?;
        assert_eq!(rejected.status, 401, "{login}");
    }
    let cpu = process.cpu_time()?.saturating_sub(cpu_before);
    let hashed = jobs().await? - jobs_before;
    assert!(
        (hashed - f64::from(ATTEMPTS)).abs() < 0.5,
        "{login}: {hashed}"
    );
    Ok(cpu.as_secs_f64())
}
