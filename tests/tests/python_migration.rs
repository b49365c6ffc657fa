//! Migration from the Python service: its table and rows are used unchanged.

use anyhow::Result;
use serde_json::json;
use sqlx::Executor;
use tests::client::credentials;
use tests::postgres::Database;
use tests::replicas::Replicas;
use tests::settings::settings;
use tests::{Store, wait};

/// Password of the account in [`USERS_TABLE`].
const USER_PASSWORD: &str = "securepassword123";

/// Table as the Python service creates it, with a row as it inserts one. `$HASH` is the hash of
/// [`USER_PASSWORD`] at cost 12.
const USERS_TABLE: &str = r"
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
async fn the_users_table_of_the_python_service_is_used_as_it_is() -> Result<()> {
    let database = Database::create_on_shared_server().await?;
    let hash = bcrypt::hash(USER_PASSWORD, 12)?;
    database
        .connect()
        .await?
        .execute(sqlx::AssertSqlSafe(USERS_TABLE.replace("$HASH", &hash)))
        .await?;
    let replicas = Replicas::start_with(
        Store::PostgresRedis,
        3,
        settings([("DB_TABLE", database.name.clone())]),
    )
    .await?;
    let client = replicas.client(0)?;
    let login = client
        .post("/api/login", &credentials("cap1", USER_PASSWORD))
        .await?;
    assert_eq!(login.status, 200, "{}", login.text);
    let token = login.access_token()?;
    let profile = client.get_with_token(&token, "/api/profile").await?.json();
    assert_eq!(profile["id"], 1);
    assert_eq!(profile["created_at"], "2025-11-23T13:50:20.191421+00:00");
    assert_eq!(client.register("cap2").await?.json(), json!({"id": 2}));
    wait::until("the third replica", async || {
        replicas.client(2).is_ok() && replicas.logs().contains("listening")
    })
    .await
}
