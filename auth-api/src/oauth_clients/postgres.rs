//! OAuth clients in PostgreSQL.

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::rows::{to_client, to_client_with_hash, to_id};
use crate::domain::oauth_client::{
    ListedOAuthClient, NewOAuthClient, OAuthClient, OAuthClientId, OAuthClientSecretHash,
};
use crate::store::postgres::{Postgres, STORE, Timestamp};
use crate::store::unavailable::Unavailable;

/// The table `oauth_clients` of a PostgreSQL database. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct PostgresOAuthClients(pub(crate) Postgres);

impl PostgresOAuthClients {
    pub(super) async fn add(&self, new: &NewOAuthClient) -> Result<(), Unavailable> {
        let insert = sqlx::query(
            "INSERT INTO oauth_clients (id, name, secret_hash, created_at) VALUES ($1, $2, $3, $4)",
        )
        .bind(new.client.id.to_string())
        .bind(new.client.name.as_str())
        .bind(new.secret_hash.as_bytes())
        .bind(new.created_at);
        self.0.execute(insert).await.map(drop)
    }

    pub(super) async fn find(
        &self,
        id: OAuthClientId,
    ) -> Result<Option<(OAuthClient, OAuthClientSecretHash)>, Unavailable> {
        let select = sqlx::query_as("SELECT name, secret_hash FROM oauth_clients WHERE id = $1")
            .bind(id.to_string());
        let row: Option<(String, Vec<u8>)> = self.0.read_optional(select).await?;
        Ok(row.map(|(name, secret_hash)| to_client_with_hash(id, name, &secret_hash)))
    }

    pub(super) async fn list(&self) -> Result<Vec<ListedOAuthClient>, Unavailable> {
        let select =
            sqlx::query("SELECT id, name, created_at FROM oauth_clients ORDER BY created_at, id");
        let rows = self.0.read_rows_on(&mut None, select).await?;
        let listed: Result<Vec<_>, _> = rows.iter().map(to_listed_client).collect();
        let listed = listed.map_err(|error| Unavailable::because(STORE, &error))?;
        Ok(listed.into_iter().flatten().collect())
    }

    pub(super) async fn delete(
        &self,
        id: OAuthClientId,
    ) -> Result<Option<OAuthClient>, Unavailable> {
        let delete = sqlx::query_as("DELETE FROM oauth_clients WHERE id = $1 RETURNING name")
            .bind(id.to_string());
        let row: Option<(String,)> = self.0.write_optional(delete).await?;
        Ok(row.map(|(name,)| to_client(id, name)))
    }
}

/// Returns `None` if the id is none of this program.
fn to_listed_client(row: &PgRow) -> Result<Option<ListedOAuthClient>, sqlx::Error> {
    let (id, name): (String, String) = (row.try_get("id")?, row.try_get("name")?);
    let created_at: Timestamp = row.try_get("created_at")?;
    Ok(to_id(&id).map(|id| ListedOAuthClient {
        client: to_client(id, name),
        created_at: created_at.to_datetime(),
    }))
}
