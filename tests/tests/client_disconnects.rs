//! Clients that disconnect during a request: the request is carried out completely or not at all.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sqlx::PgConnection;
use tests::client::{Client, NEW_PASSWORD, PASSWORD, credentials};
use tests::postgres::lock_user_row;
use tests::replicas::Replicas;
use tests::{Store, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Attempts per request: on a busy machine the lock timeout of the server may pass before the test
/// releases the row.
const MAX_ATTEMPTS: usize = 20;

/// One replica on PostgreSQL, with the account of alice.
struct Fixture {
    replicas: Replicas,
    client: Client,
    /// Connection of the test to the database of the replica.
    observer: PgConnection,
}

impl Fixture {
    async fn start() -> Result<Self> {
        let replicas = Replicas::start(Store::PostgresRedis, 1).await?;
        let client = replicas.client(0)?;
        let database = replicas.database.as_ref().context("a database")?;
        let observer = database.connect().await?;
        client.register("alice").await?;
        Ok(Self {
            replicas,
            client,
            observer,
        })
    }

    /// Sends a request that waits for the locked row of alice, disconnects, and then releases the
    /// row. Returns `false` if the server had given up waiting for the row before.
    async fn disconnect_during(&mut self, path: &str, token: &str, body: &Value) -> Result<bool> {
        let row_before = self.user_row().await?;
        let database = self.replicas.database.as_ref().context("a database")?;
        let mut lock_holder = database.connect().await?;
        let lock = lock_user_row(&mut lock_holder, "alice").await?;
        let mut client = TcpStream::connect(self.replicas.instances[0].address).await?;
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             authorization: Bearer {token}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        client.write_all(request.as_bytes()).await?;
        database.wait_for_lock_wait(&mut self.observer).await?;
        // The server closes the connection once it has seen that the client disconnected.
        client.shutdown().await?;
        client.read_to_end(&mut Vec::new()).await?;
        let failures = self.store_failure_count();
        lock.rollback().await?;
        while self.user_row().await? == row_before {
            if self.store_failure_count() > failures {
                return Ok(false);
            }
            tokio::task::yield_now().await;
        }
        Ok(true)
    }

    async fn user_row(&mut self) -> Result<Option<String>> {
        let row = "SELECT users::text FROM users WHERE login = 'alice'";
        Ok(sqlx::query_scalar(row)
            .fetch_optional(&mut self.observer)
            .await?)
    }

    fn store_failure_count(&self) -> usize {
        self.replicas
            .logs()
            .matches("store operation failed")
            .count()
    }

    fn audit_count(&self, event: &str) -> usize {
        let event = format!("\"event\":\"{event}\"");
        self.replicas.logs().matches(&event).count()
    }
}

#[tokio::test]
async fn a_password_change_completes_after_its_client_disconnects() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let change = json!({"current_password": PASSWORD, "new_password": NEW_PASSWORD});
    for _ in 0..MAX_ATTEMPTS {
        let other_token = fixture.client.register_and_login("alice").await?;
        let token = fixture.client.register_and_login("alice").await?;
        if !fixture
            .disconnect_during("/api/password", &token, &change)
            .await?
        {
            continue;
        }
        wait::until("the audit event", async || {
            fixture.audit_count("password_changed") == 1
        })
        .await?;
        let profile = fixture
            .client
            .get_with_token(&other_token, "/api/profile")
            .await?;
        assert_eq!(profile.status, 401, "the other session is still valid");
        let new_credentials = credentials("alice", NEW_PASSWORD);
        let new_login = fixture.client.post("/api/login", &new_credentials).await?;
        assert_eq!(new_login.status, 200);
        return Ok(());
    }
    anyhow::bail!("the server gave up waiting for the row in every attempt");
}

#[tokio::test]
async fn a_login_and_a_deletion_are_audited_after_their_client_disconnects() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let credentials = credentials("alice", PASSWORD);
    for (path, event) in [("/api/login", "login"), ("/api/delete", "delete")] {
        let mut attempts = 0;
        while !fixture.disconnect_during(path, "", &credentials).await? {
            attempts += 1;
            anyhow::ensure!(
                attempts < MAX_ATTEMPTS,
                "the server gave up waiting for the row in every attempt"
            );
        }
        wait::until("the audit event", async || fixture.audit_count(event) == 1).await?;
    }
    Ok(())
}
