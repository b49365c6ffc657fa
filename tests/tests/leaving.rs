//! Clients that go away amid their request: what they asked for is done whole, or not at all.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection};
use tests::client::{Client, PASSWORD, credentials};
use tests::replica::Replicas;
use tests::{Store, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const NEW_PASSWORD: &str = "another one 1";
/// A row is not waited for for long, and a busy machine may be slower than that.
const TRIES: usize = 20;

struct Story {
    replicas: Replicas,
    client: Client,
    /// A connection of our own, to see what waits in the database.
    look: PgConnection,
}

impl Story {
    async fn begin() -> Result<Self> {
        let replicas = Replicas::start(Store::PostgresRedis, 1).await?;
        let client = replicas.client(0)?;
        let database = replicas.database.as_ref().context("it has one")?;
        let look = database.connect().await?;
        client.register("alice").await?;
        Ok(Self {
            replicas,
            client,
            look,
        })
    }

    /// A client asks for something that has to wait for alice's row, goes away, and only then the
    /// row is let go. Whether it was in time for the server to do it.
    async fn leave(&mut self, path: &str, token: &str, body: &Value) -> Result<bool> {
        let before = self.row().await?;
        let database = self.replicas.database.as_ref().context("it has one")?;
        let mut holder = database.connect().await?;
        let mut held = holder.begin().await?;
        held.execute("SELECT 1 FROM users WHERE login = 'alice' FOR UPDATE")
            .await?;
        let mut client = TcpStream::connect(self.replicas.all[0].address).await?;
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             authorization: Bearer {token}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        client.write_all(request.as_bytes()).await?;
        let waiting = "SELECT count(*) > 0 FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        while !sqlx::query_scalar(waiting)
            .fetch_one(&mut self.look)
            .await?
        {
            tokio::task::yield_now().await;
        }
        // That we have left has been seen once the other side has closed too.
        client.shutdown().await?;
        client.read_to_end(&mut Vec::new()).await?;
        let refusals = self.refusals();
        held.rollback().await?;
        while self.row().await? == before {
            if self.refusals() > refusals {
                return Ok(false);
            }
            tokio::task::yield_now().await;
        }
        Ok(true)
    }

    async fn row(&mut self) -> Result<Option<String>> {
        let row = "SELECT users::text FROM users WHERE login = 'alice'";
        Ok(sqlx::query_scalar(row)
            .fetch_optional(&mut self.look)
            .await?)
    }

    fn refusals(&self) -> usize {
        self.replicas.logs().matches("a store failed").count()
    }

    fn audits(&self, event: &str) -> usize {
        let event = format!("\"event\":\"{event}\"");
        self.replicas.logs().matches(&event).count()
    }
}

#[tokio::test]
async fn a_password_is_changed_whole() -> Result<()> {
    let mut story = Story::begin().await?;
    let change = json!({"current_password": PASSWORD, "new_password": NEW_PASSWORD});
    for _ in 0..TRIES {
        let other = story.client.token("alice").await?;
        let token = story.client.token("alice").await?;
        if !story.leave("/api/password", &token, &change).await? {
            continue;
        }
        wait::until("the audit", async || story.audits("password_changed") == 1).await?;
        let profile = story.client.get_as(&other, "/api/profile").await?;
        assert_eq!(profile.status, 401, "the other session has ended");
        let new = credentials("alice", NEW_PASSWORD);
        assert_eq!(story.client.post("/api/login", &new).await?.status, 200);
        return Ok(());
    }
    anyhow::bail!("the server never waited long enough");
}

#[tokio::test]
async fn a_login_and_a_deletion_are_in_the_audit() -> Result<()> {
    let mut story = Story::begin().await?;
    let credentials = credentials("alice", PASSWORD);
    for (path, event) in [("/api/login", "login"), ("/api/delete", "delete")] {
        let mut tries = 0;
        while !story.leave(path, "", &credentials).await? {
            tries += 1;
            anyhow::ensure!(tries < TRIES, "the server never waited long enough");
        }
        wait::until("the audit", async || story.audits(event) == 1).await?;
    }
    Ok(())
}
