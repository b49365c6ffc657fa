//! Access tokens: JWT signed with HS256 (RFC 7519), verified as RFC 8725 recommends.

use std::time::Duration;

use chrono::{DateTime, Utc};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::login::Login;
use super::principal::{Principal, SessionId};
use super::secret_keys::SecretKeys;
use super::strict_json::StrictObject;
use super::user::UserId;

const ISSUER: &str = "auth-api";
/// Longest token that is parsed. Tokens of this service have about 400 bytes.
const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// Tolerated clock difference between replicas, in seconds.
const CLOCK_SKEW_SECONDS: i64 = 30;

/// Reason a token is not accepted. Its `Display` is the message for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidAccessToken {
    #[error("Invalid token")]
    Malformed,
    #[error("Token has expired")]
    Expired,
    #[error("Invalid token payload")]
    InvalidPayload,
    /// The signature is valid and the session is not active: it has ended, or the Python service
    /// issued the token.
    #[error("Token not found or expired")]
    SessionNotFound,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<i64>,
    exp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iat: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbf: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jti: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<String>,
}

/// Keys that sign and verify access tokens.
pub(crate) struct AccessTokenKeys {
    signing: EncodingKey,
    /// The current key, then the others.
    verifying: Vec<DecodingKey>,
    validation: Validation,
    lifetime: Duration,
}

impl AccessTokenKeys {
    /// Creates the keys. A token is valid for `lifetime`.
    pub(crate) fn new(keys: &SecretKeys, lifetime: Duration) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = 0;
        validation.validate_aud = false;
        validation.set_issuer(&[ISSUER]);
        Self {
            signing: EncodingKey::from_secret(keys.current().expose_secret()),
            verifying: keys
                .verifying()
                .map(|key| DecodingKey::from_secret(key.expose_secret()))
                .collect(),
            validation,
            lifetime,
        }
    }

    pub(crate) fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// Signs a token for `principal` that is valid from `now` on.
    pub(crate) fn sign(&self, login: &Login, principal: Principal, now: DateTime<Utc>) -> String {
        let issued_at = now.timestamp();
        let lifetime = i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX);
        let claims = Claims {
            sub: Some(login.as_str().to_owned()),
            user_id: Some(principal.user.0),
            exp: issued_at.saturating_add(lifetime),
            iat: Some(issued_at),
            nbf: None,
            jti: Some(Uuid::new_v4().simple().to_string()),
            sid: Some(principal.session.to_string()),
            iss: Some(ISSUER.to_owned()),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.signing)
            .expect("claims are plain JSON and the key is one for HS256")
    }

    /// Returns the principal of `token`, whose session may have ended.
    ///
    /// # Errors
    /// Returns an error if the token is malformed, has expired or was not signed by this service.
    pub(crate) fn verify(&self, token: &str) -> Result<Principal, InvalidAccessToken> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(InvalidAccessToken::Malformed);
        }
        check_structure(token)?;
        let mut outcome = Err(InvalidAccessToken::Malformed);
        for key in &self.verifying {
            match jsonwebtoken::decode::<Claims>(token, key, &self.validation) {
                Ok(data) => return principal_of(&data.claims, Utc::now()),
                Err(error) if matches!(error.kind(), ErrorKind::ExpiredSignature) => {
                    outcome = Err(InvalidAccessToken::Expired);
                }
                Err(_) => {}
            }
        }
        outcome
    }
}

/// Rejects a token with duplicate member names, and one with critical extensions, of which this
/// service implements none (RFC 7515, section 4.1.11).
fn check_structure(token: &str) -> Result<(), InvalidAccessToken> {
    let mut parts = token.split('.');
    let mut next_object = || parts.next().and_then(StrictObject::from_base64url);
    match (next_object(), next_object()) {
        (Some(header), Some(_)) if !header.has("crit") => Ok(()),
        _ => Err(InvalidAccessToken::Malformed),
    }
}

fn principal_of(claims: &Claims, now: DateTime<Utc>) -> Result<Principal, InvalidAccessToken> {
    let (Some(user), Some(_)) = (claims.user_id, &claims.sub) else {
        return Err(InvalidAccessToken::InvalidPayload);
    };
    let valid_from = claims.iat.max(claims.nbf);
    if valid_from.is_some_and(|valid_from| valid_from > now.timestamp() + CLOCK_SKEW_SECONDS) {
        return Err(InvalidAccessToken::Malformed);
    }
    let session = claims.sid.as_deref().and_then(SessionId::parse);
    match (session, &claims.iss) {
        (Some(session), Some(_)) => Ok(Principal {
            user: UserId(user),
            session,
        }),
        _ => Err(InvalidAccessToken::SessionNotFound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn keys(key: &str) -> AccessTokenKeys {
        AccessTokenKeys::new(&SecretKeys::of(key, &[]), HOUR)
    }

    fn alice() -> (Login, Principal) {
        let principal = Principal {
            user: UserId(7),
            session: SessionId::random(),
        };
        (Login::new("alice").unwrap(), principal)
    }

    #[test]
    fn a_token_is_valid_for_its_principal_until_it_expires() {
        let (login, principal) = alice();
        let keys = keys("a key");
        let now = Utc::now();
        assert_eq!(
            keys.verify(&keys.sign(&login, principal, now)),
            Ok(principal)
        );
        let old = keys.sign(&login, principal, now - HOUR - Duration::from_secs(1));
        assert_eq!(keys.verify(&old), Err(InvalidAccessToken::Expired));
    }

    #[test]
    fn a_token_with_another_key_or_algorithm_is_rejected() {
        let (login, principal) = alice();
        let foreign = keys("another key").sign(&login, principal, Utc::now());
        assert_eq!(
            keys("a key").verify(&foreign),
            Err(InvalidAccessToken::Malformed)
        );
        let claims = foreign.split('.').nth(1).unwrap();
        // {"alg":"none","typ":"JWT"}
        let unsigned = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{claims}.");
        assert_eq!(
            keys("a key").verify(&unsigned),
            Err(InvalidAccessToken::Malformed)
        );
        assert_eq!(
            keys("a key").verify("x"),
            Err(InvalidAccessToken::Malformed)
        );
        assert_eq!(
            keys("a key").verify(&"x".repeat(9000)),
            Err(InvalidAccessToken::Malformed)
        );
    }

    #[test]
    fn an_ambiguous_token_is_rejected() {
        use base64::Engine as _;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let key = EncodingKey::from_secret(b"a key");
        let sign = |header: &str, claims: &str| {
            let text = [header, claims]
                .map(|part| URL_SAFE_NO_PAD.encode(part))
                .join(".");
            let signature =
                jsonwebtoken::crypto::sign(text.as_bytes(), &key, Algorithm::HS256).unwrap();
            format!("{text}.{signature}")
        };
        let sid = SessionId::random();
        let exp = Utc::now().timestamp() + 60;
        let claims =
            format!(r#""sub":"alice","user_id":7,"exp":{exp},"sid":"{sid}","iss":"auth-api""#);
        let header = r#"{"alg":"HS256"}"#;
        let valid = sign(header, &format!("{{{claims}}}"));
        assert!(keys("a key").verify(&valid).is_ok());
        let future = exp + 3600;
        for (header, claims) in [
            (header, format!(r#"{{"user_id":8,{claims}}}"#)),
            (header, format!(r#"{{"iat":{future},{claims}}}"#)),
            (header, format!(r#"{{"nbf":{future},{claims}}}"#)),
            (
                header,
                format!("{{{}}}", claims.replace(&format!("\"exp\":{exp},"), "")),
            ),
            (
                header,
                format!(
                    "{{{}}}",
                    claims.replace("\"user_id\":7", "\"user_id\":\"7\"")
                ),
            ),
            (r#"{"alg":"HS256","alg":"HS256"}"#, format!("{{{claims}}}")),
            (
                r#"{"alg":"HS256","crit":["b64"],"b64":false}"#,
                format!("{{{claims}}}"),
            ),
            (r#"{"alg":"HS384"}"#, format!("{{{claims}}}")),
        ] {
            let result = keys("a key").verify(&sign(header, &claims));
            assert_eq!(
                result,
                Err(InvalidAccessToken::Malformed),
                "{header} {claims}"
            );
        }
    }

    #[test]
    fn a_token_signed_with_a_previous_or_next_key_is_accepted() {
        let (login, principal) = alice();
        let others = ["a previous key", "an older key", "the next key"];
        let keys_of_all = AccessTokenKeys::new(&SecretKeys::of("the key", &others), HOUR);
        for signing in others {
            let token = keys(signing).sign(&login, principal, Utc::now());
            assert_eq!(keys_of_all.verify(&token), Ok(principal), "{signing}");
        }
        let foreign = keys("another key").sign(&login, principal, Utc::now());
        assert_eq!(
            keys_of_all.verify(&foreign),
            Err(InvalidAccessToken::Malformed)
        );
    }
}
