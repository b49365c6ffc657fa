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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::oauth_client::OAuthClientSecret;

    #[test]
    fn no_secret_matches_a_stored_hash_that_is_none() {
        let id = OAuthClientId::random();
        let secret = OAuthClientSecret::random();
        let is_match = |stored: &[u8]| {
            let (client, hash) = to_client_with_hash(id, "orders".to_owned(), stored);
            assert_eq!((client.id, client.name.as_str()), (id, "orders"));
            hash.equals(&secret.hash())
        };
        let hash = secret.hash();
        assert!(is_match(hash.as_bytes()));
        for damaged in [&[][..], &hash.as_bytes()[1..], &[0; 33]] {
            assert!(!is_match(damaged));
        }
    }

    #[test]
    fn a_stored_id_that_is_none_is_left_out() {
        let id = OAuthClientId::random();
        assert_eq!(to_id(&id.to_string()), Some(id));
        for damaged in ["", "x", &id.to_string()[1..]] {
            assert_eq!(to_id(damaged), None, "{damaged}");
        }
    }
}
