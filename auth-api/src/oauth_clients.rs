//! Store of OAuth clients: PostgreSQL, or the embedded SQLite file.
//!
//! A client is read each time it is used, and in no cache: a deletion takes effect at once on every replica.

mod postgres;
mod rows;
mod sqlite;

pub(crate) use postgres::PostgresOAuthClients;
pub(crate) use sqlite::SqliteOAuthClients;

use crate::domain::oauth_client::{
    ListedOAuthClient, NewOAuthClient, OAuthClient, OAuthClientId, OAuthClientSecretHash,
};
use crate::store::unavailable::Unavailable;

/// Clients in one of the stores. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) enum OAuthClients {
    Postgres(PostgresOAuthClients),
    Sqlite(SqliteOAuthClients),
}

/// Calls a method of the store that is in use. PostgreSQL measures its operations itself.
macro_rules! dispatch {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self {
            Self::Postgres(clients) => clients.$method($($argument),*).await,
            Self::Sqlite(clients) => clients.0.timed(clients.$method($($argument),*)).await,
        }
    };
}

impl OAuthClients {
    pub(crate) async fn add(&self, client: &NewOAuthClient) -> Result<(), Unavailable> {
        dispatch!(self.add(client))
    }

    /// Returns the client with this id, and the hash of its secret.
    pub(crate) async fn find(
        &self,
        id: OAuthClientId,
    ) -> Result<Option<(OAuthClient, OAuthClientSecretHash)>, Unavailable> {
        dispatch!(self.find(id))
    }

    /// Returns all clients, the oldest first.
    pub(crate) async fn list(&self) -> Result<Vec<ListedOAuthClient>, Unavailable> {
        dispatch!(self.list())
    }

    /// Deletes a client and returns it, `None` if there is none with this id.
    pub(crate) async fn delete(
        &self,
        id: OAuthClientId,
    ) -> Result<Option<OAuthClient>, Unavailable> {
        dispatch!(self.delete(id))
    }
}
