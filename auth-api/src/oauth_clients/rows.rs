//! Conversion of database rows that both stores have in common.

use crate::domain::oauth_client::{
    OAuthClient, OAuthClientId, OAuthClientName, OAuthClientSecretHash,
};

pub(super) fn to_client(id: OAuthClientId, name: String) -> OAuthClient {
    OAuthClient {
        id,
        name: OAuthClientName::from_stored(name),
    }
}

/// Converts the columns of a client. No secret matches a stored hash that is none.
pub(super) fn to_client_with_hash(
    id: OAuthClientId,
    name: String,
    secret_hash: &[u8],
) -> (OAuthClient, OAuthClientSecretHash) {
    let secret_hash = OAuthClientSecretHash::from_stored(secret_hash).unwrap_or_else(|| {
        tracing::warn!(oauth_client = %id, "stored hash of the client's secret is not a SHA-256");
        OAuthClientSecretHash::OF_NO_CLIENT
    });
    (to_client(id, name), secret_hash)
}

/// Converts a listed id. Only this program writes the table, so another text is a change by hand.
pub(super) fn to_id(text: &str) -> Option<OAuthClientId> {
    let id = OAuthClientId::parse(text);
    if id.is_none() {
        tracing::warn!(
            id = text,
            "a stored client has an invalid id and cannot be used"
        );
    }
    id
}
