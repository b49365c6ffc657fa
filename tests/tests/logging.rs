//! Logs of both programs: no secrets, audit events at every level, no request blocked by output.

use anyhow::Result;
use tests::client::{PASSWORD, credentials};
use tests::replicas::Replicas;
use tests::settings::settings;
use tests::{Edge, Gateway, MockUpstream, Store, on_both_stores, wait};

on_both_stores!(
    no_log_contains_a_password_or_a_token,
    audit_events_are_logged_at_every_log_level,
    a_blocked_standard_output_does_not_stop_auth_api,
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

async fn a_blocked_standard_output_does_not_stop_auth_api(store: Store) -> Result<()> {
    let (unread_end, stdout) = std::io::pipe()?;
    let mut replicas = Replicas::start(store, 0).await?;
    replicas.start_another_with_stdout(stdout.into())?;
    replicas.wait_until_ready(0).await?;
    let client = replicas.client(0)?;
    assert_eq!(client.register("alice").await?.status, 201);
    for number in 0..200 {
        let unknown = format!("unknown {number}");
        let login = client.login(&unknown);
        assert_eq!(
            tokio::time::timeout(wait::TIMEOUT, login).await??.status,
            401
        );
    }
    // Their lines together are longer than the writer's buffer of 8 MiB.
    let long_path = format!("/{}", "x".repeat(48 << 10));
    for _ in 0..250 {
        assert_eq!(client.get(&long_path).await?.status, 404);
    }
    let dropped = replicas.metric(0, "auth_api_log_lines_dropped_total", &[]);
    assert!(dropped.await?.is_some_and(|lines| lines > 0.0));
    assert_eq!(client.get("/health").await?.status, 200);
    assert_eq!(client.login("alice").await?.status, 200);
    drop(client);
    assert!(replicas.instances[0].process.terminate()?.success());
    drop(unread_end);
    Ok(())
}
