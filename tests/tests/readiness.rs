//! Readiness of auth-api: a replica is ready if its stores can do what requests need of them.

use anyhow::Result;
use tests::Store;
use tests::replicas::Replicas;
use tests::settings::settings;

#[tokio::test]
async fn a_replica_is_ready_once_its_schema_is_there() -> Result<()> {
    let by_command = settings([("MIGRATE", "command".to_owned())]);
    let mut replicas = Replicas::start_with(Store::PostgresRedis, 0, by_command).await?;
    replicas.start_another()?;
    let client = replicas.client(0)?;
    client
        .wait_for_response("/ready", |response| {
            let problem = response.json()["users"]["problem"].to_string();
            response.status == 503 && problem.contains("auth-api migrate")
        })
        .await?;
    let migrated = replicas.command("auth-api").arg("migrate").status()?;
    assert!(migrated.success());
    replicas.wait_until_ready(0).await?;
    assert_eq!(client.register("alice").await?.status, 201);
    assert_eq!(client.login("alice").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_replica_is_not_ready_while_redis_rejects_writes() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    let redis = replicas.redis.as_ref().expect("the store has Redis");
    redis.set_config("maxmemory", "1").await?;
    client
        .wait_for_response("/ready", |response| {
            let readiness = response.json();
            response.status == 503
                && readiness["users"]["ready"] == true
                && readiness["sessions"]["ready"] == false
                && readiness["sessions"]["problem"]
                    .as_str()
                    .is_some_and(|problem| problem.starts_with("out of memory"))
        })
        .await?;
    let up = async |store: &str| replicas.metric(0, "auth_api_store_up", &[store]).await;
    assert_eq!(up("redis").await?, Some(0.0));
    assert_eq!(up("postgres").await?, Some(1.0));
    redis.set_config("maxmemory", "0").await?;
    client
        .wait_for_response("/ready", |response| response.status == 200)
        .await?;
    assert_eq!(up("redis").await?, Some(1.0));
    Ok(())
}

#[tokio::test]
async fn requests_for_readiness_cost_the_stores_nothing() -> Result<()> {
    let replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let client = replicas.client(0)?;
    let operations = async || {
        let name = "auth_api_store_duration_seconds_count";
        let count = replicas.metric(0, name, &["postgres"]).await;
        count.map(Option::unwrap_or_default)
    };
    let before = operations().await?;
    for _ in 0..500 {
        assert_eq!(client.get("/ready").await?.status, 200);
    }
    let checks = operations().await? - before;
    assert!(checks < 100.0, "{checks} operations for 500 requests");
    Ok(())
}
