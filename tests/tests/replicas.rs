//! auth-api by itself, on both stores: the way of an account from registration to deletion.

use anyhow::Result;
use serde_json::json;
use tests::client::{PASSWORD, credentials};
use tests::replica::Replicas;
use tests::{Store, on_both_stores};

on_both_stores!(
    every_replica_knows_every_account_and_session,
    sigterm_ends_every_replica_well,
);

async fn every_replica_knows_every_account_and_session(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let (first, second) = (replicas.client(0)?, replicas.client(1)?);

    assert_eq!(first.register("alice").await?.status, 201);
    assert_eq!(second.register("alice").await?.status, 409);
    let token = second.token("alice").await?;
    let profile = first.get_as(&token, "/api/profile").await?;
    assert_eq!(
        (profile.status, &profile.json()["login"]),
        (200, &json!("alice"))
    );
    assert_eq!(second.get_as(&token, "/api/profile").await?.status, 200);

    assert_eq!(
        first.post_as(&token, "/api/logout", None).await?.status,
        200
    );
    let refused = second.get_as(&token, "/api/profile").await?;
    assert_eq!(refused.status, 401);
    assert_eq!(
        refused.json(),
        json!({"detail": "Token not found or expired"})
    );

    let deleted = second
        .post("/api/delete", &credentials("alice", PASSWORD))
        .await?;
    assert_eq!(deleted.status, 200);
    assert_eq!(first.login("alice").await?.status, 401);
    Ok(())
}

async fn sigterm_ends_every_replica_well(store: Store) -> Result<()> {
    let mut replicas = Replicas::start(store, 2).await?;
    for replica in &mut replicas.all {
        assert!(
            replica.process.stop()?.success(),
            "{}",
            replica.process.log()
        );
    }
    Ok(())
}
