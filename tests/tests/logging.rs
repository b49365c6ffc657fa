//! Logs of both programs: no secrets, audit events at every level, no request blocked by output.

use anyhow::Result;
use tests::client::{PASSWORD, credentials};
use tests::replicas::Replicas;
use tests::settings::settings;
use tests::{Edge, Gateway, MockUpstream, Store, on_both_stores, wait};

on_both_stores!(
    no_log_contains_a_password_or_a_token,
    audit_events_are_logged_at_every_log_level,
);

async fn no_log_contains_a_password_or_a_token(store: Store) -> Result<()> {
    const WRONG_PASSWORD: &str = "wrong but secret";
    let mut edge = Edge::builder(store).start().await?;
    let client = edge.client()?;
    let token = client.register_and_login("alice").await?;
    client.get_with_token(&token, "/api/profile").await?;
    client.get(&format!("/api/profile?token={token}")).await?;
    client
        .post("/api/login", &credentials("alice", WRONG_PASSWORD))
        .await?;

    // The programs write their buffered log lines before they exit.
    edge.gateway.process.terminate()?;
    for replica in &mut edge.replicas.instances {
        replica.process.terminate()?;
    }
    let logs = edge.logs();
    assert!(
        logs.matches("/api/profile").count() >= 4,
        "both access logs contain both requests: {logs}"
    );
    let signature = token.rsplit('.').next().expect("a token has three parts");
    for secret in [PASSWORD, WRONG_PASSWORD, signature] {
        assert!(!logs.contains(secret), "a log contains a secret");
    }
    Ok(())
}

async fn audit_events_are_logged_at_every_log_level(store: Store) -> Result<()> {
    let settings = settings([("LOG_LEVEL", "ERROR".to_owned())]);
    let replicas = Replicas::start_with(store, 1, settings).await?;
    assert_eq!(replicas.client(0)?.login("alice").await?.status, 401);
    replicas.wait_for_log("\"login_failed\"").await?;
    assert!(!replicas.logs().contains("\"INFO\",\"message\":\"request\""));
    Ok(())
}

#[tokio::test]
async fn a_blocked_standard_output_blocks_no_request() -> Result<()> {
    let (unread_end, stdout) = std::io::pipe()?;
    let upstream = MockUpstream::always_ok().await?;
    let mut gateway = Gateway::builder(&[upstream.address])
        .config("premier: {default_features: {monitoring: {log_threshold: 0}}}")
        .stdout(stdout)
        .start()
        .await?;
    let client = gateway.client()?;
    // Many more lines than the pipe holds.
    for _ in 0..1000 {
        let response = tokio::time::timeout(wait::TIMEOUT, client.get("/")).await??;
        assert_eq!(response.status, 200);
    }
    drop(client);
    assert!(gateway.process.terminate()?.success());
    drop(unread_end);
    Ok(())
}
