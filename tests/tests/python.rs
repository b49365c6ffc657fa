//! Moving over from the Python service: its table, its rows, its clients.

use anyhow::Result;
use serde_json::json;
use sqlx::Executor;
use tests::client::credentials;
use tests::postgres;
use tests::replica::Replicas;
use tests::{Store, wait};

/// As the Python service makes it, with a row that it wrote: `securepassword123` at cost 12.
const TABLE: &str = r"
CREATE TABLE IF NOT EXISTS users (
  id SERIAL PRIMARY KEY,
  login VARCHAR(255) UNIQUE NOT NULL,
  password_hash TEXT NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT NOW(),
  last_login TIMESTAMP WITH TIME ZONE
);
INSERT INTO users (login, password_hash, created_at) VALUES
  ('cap1', '$HASH', '2025-11-23 14:50:20.191421+01');
";

#[tokio::test]
async fn its_table_is_taken_over_as_it_is() -> Result<()> {
    let database = postgres::Database::shared().await?;
    let hash = bcrypt::hash("securepassword123", 12)?;
    database
        .connect()
        .await?
        .execute(sqlx::AssertSqlSafe(TABLE.replace("$HASH", &hash)))
        .await?;
    let replicas = Replicas::start_with(
        Store::PostgresRedis,
        3,
        vec![("DB_TABLE".to_owned(), database.name.clone())],
    )
    .await?;
    let client = replicas.client(0)?;
    let login = client
        .post("/api/login", &credentials("cap1", "securepassword123"))
        .await?;
    assert_eq!(login.status, 200, "{}", login.text);
    let token = login.json()["access_token"]
        .as_str()
        .expect("a token")
        .to_owned();
    let profile = client.get_as(&token, "/api/profile").await?.json();
    assert_eq!(profile["id"], 1);
    assert_eq!(profile["created_at"], "2025-11-23T13:50:20.191421+00:00");
    assert_eq!(client.register("cap2").await?.json(), json!({"id": 2}));
    wait::until("the other replicas", async || {
        replicas.client(2).is_ok() && replicas.logs().contains("listening")
    })
    .await
}
