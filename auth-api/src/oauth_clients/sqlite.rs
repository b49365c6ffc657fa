//! OAuth clients in the embedded store.

use super::rows::{to_client, to_client_with_hash, to_id};
use crate::domain::oauth_client::{
    ListedOAuthClient, NewOAuthClient, OAuthClient, OAuthClientId, OAuthClientSecretHash,
};
use crate::store::sqlite::{Sqlite, StoredText, failed, time_from_micros};
use crate::store::unavailable::Unavailable;

/// The table `oauth_clients` of a SQLite file. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct SqliteOAuthClients(pub(crate) Sqlite);

impl SqliteOAuthClients {
    pub(super) async fn add(&self, new: &NewOAuthClient) -> Result<(), Unavailable> {
        sqlx::query(
            "INSERT INTO oauth_clients (id, name, secret_hash, created_at) VALUES (?, ?, ?, ?)",
        )
        .bind(new.client.id.to_string())
        .bind(new.client.name.as_str())
        .bind(new.secret_hash.as_bytes())
        .bind(new.created_at.timestamp_micros())
        .execute(&self.0.writer)
        .await
        .map_err(failed)
        .map(drop)
    }

    pub(super) async fn find(
        &self,
        id: OAuthClientId,
    ) -> Result<Option<(OAuthClient, OAuthClientSecretHash)>, Unavailable> {
        let row: Option<(StoredText, Vec<u8>)> =
            sqlx::query_as("SELECT name, secret_hash FROM oauth_clients WHERE id = ?")
                .bind(id.to_string())
                .fetch_optional(&self.0.readers)
                .await
                .map_err(failed)?;
        Ok(row.map(|(StoredText(name), secret_hash)| to_client_with_hash(id, name, &secret_hash)))
    }

    pub(super) async fn list(&self) -> Result<Vec<ListedOAuthClient>, Unavailable> {
        let rows: Vec<(StoredText, StoredText, i64)> = sqlx::query_as(
            "SELECT id, name, created_at FROM oauth_clients ORDER BY created_at, id",
        )
        .fetch_all(&self.0.readers)
        .await
        .map_err(failed)?;
        let listed = rows
            .into_iter()
            .filter_map(|(id, StoredText(name), created_at)| {
                Some(ListedOAuthClient {
                    client: to_client(to_id(&id.0)?, name),
                    created_at: time_from_micros(created_at),
                })
            });
        Ok(listed.collect())
    }

    pub(super) async fn delete(
        &self,
        id: OAuthClientId,
    ) -> Result<Option<OAuthClient>, Unavailable> {
        let delete = sqlx::query_scalar("DELETE FROM oauth_clients WHERE id = ? RETURNING name")
            .bind(id.to_string());
        let name: Option<StoredText> = self.0.write_returning(delete).await?;
        Ok(name.map(|StoredText(name)| to_client(id, name)))
    }
}
