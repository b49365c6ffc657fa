//! The main job, end to end: a client registers, logs in, reads its profile, is held to a quota
//! and logs out, over HTTPS, through the gateway, against two replicas.

use anyhow::Result;
use serde_json::json;
use tests::client::{PASSWORD, Protocol, credentials};
use tests::{Edge, Store, on_both_stores};

on_both_stores!(
    a_client_registers_logs_in_reads_its_profile_and_logs_out,
    no_log_has_a_password_or_a_token,
    sigterm_ends_every_program_well,
);

async fn a_client_registers_logs_in_reads_its_profile_and_logs_out(store: Store) -> Result<()> {
    let edge = Edge::on(store).start().await?;
    for (protocol, login) in [(Protocol::Http1, "alice"), (Protocol::Http2, "bob")] {
        let client = edge.client_speaking(protocol)?;

        let registered = client.register(login).await?;
        assert_eq!(registered.status, 201, "{}", registered.text);
        let id = registered.json()["id"].as_i64().expect("an id");

        let logged_in = client.login(login).await?;
        assert_eq!(logged_in.status, 200, "{}", logged_in.text);
        assert_eq!(logged_in.json()["token_type"], "bearer");
        let token = logged_in.json()["access_token"]
            .as_str()
            .expect("a token")
            .to_owned();

        let profile = client.get_as(&token, "/api/profile").await?;
        assert_eq!(profile.status, 200, "{}", profile.text);
        assert_eq!(profile.json()["id"], id);
        assert_eq!(profile.json()["login"], login);

        let logged_out = client.post_as(&token, "/api/logout", None).await?;
        assert_eq!(logged_out.status, 200, "{}", logged_out.text);
        assert_eq!(
            logged_out.json(),
            json!({"message": "Successfully logged out"})
        );

        let refused = client.get_as(&token, "/api/profile").await?;
        assert_eq!(refused.status, 401, "{}", refused.text);
        assert_eq!(
            refused.json(),
            json!({"detail": "Token not found or expired"})
        );

        let deleted = client
            .post("/api/delete", &credentials(login, PASSWORD))
            .await?;
        assert_eq!(deleted.status, 200, "{}", deleted.text);
        let gone = client.login(login).await?;
        assert_eq!(gone.status, 401);
        assert_eq!(gone.json(), json!({"message": "Invalid credentials"}));
        assert_eq!(gone.header("www-authenticate"), "Bearer");
    }
    Ok(())
}

async fn no_log_has_a_password_or_a_token(store: Store) -> Result<()> {
    let mut edge = Edge::on(store).start().await?;
    let client = edge.client()?;
    let token = client.token("alice").await?;
    client.get_as(&token, "/api/profile").await?;
    client.get(&format!("/api/profile?token={token}")).await?;
    client
        .post("/api/login", &credentials("alice", "wrong but secret"))
        .await?;

    // Whatever waits to be written is out when they have ended.
    edge.gateway.process.stop()?;
    for replica in &mut edge.replicas.all {
        replica.process.stop()?;
    }
    let logs = edge.logs();
    assert!(
        logs.matches("/api/profile").count() >= 4,
        "both access logs have both requests: {logs}"
    );
    let signature = token.rsplit('.').next().expect("a token has three parts");
    for secret in [PASSWORD, "wrong but secret", signature] {
        assert!(!logs.contains(secret), "a log has a secret");
    }
    Ok(())
}

async fn sigterm_ends_every_program_well(store: Store) -> Result<()> {
    let mut edge = Edge::on(store).start().await?;
    let gateway = &mut edge.gateway.process;
    assert!(gateway.stop()?.success(), "{}", gateway.log());
    for replica in &mut edge.replicas.all {
        assert!(
            replica.process.stop()?.success(),
            "{}",
            replica.process.log()
        );
    }
    Ok(())
}
