//! Access tokens: JWT with HS256 (RFC 7519, with the practices of RFC 8725).

use std::time::Duration;

use chrono::{DateTime, Utc};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::{ExposeSecret, SecretSlice};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::login::Login;
use super::session::SessionId;
use super::strict_json::StrictObject;
use super::user::UserId;

const ISSUER: &str = "auth-api";
/// A token of ours has some 400 bytes; what is far longer is not worth the work of reading it.
const MAX_BYTES: usize = 8 * 1024;
/// Seconds by which the clocks of replicas may differ.
const LEEWAY: i64 = 30;

/// Who a token says is asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Principal {
    pub(crate) user: UserId,
    pub(crate) session: SessionId,
}

/// Why a token proves nothing. Its `Display` is what the client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidToken {
    #[error("Invalid token")]
    Malformed,
    #[error("Token has expired")]
    Expired,
    #[error("Invalid token payload")]
    Payload,
    /// Signed well, for a session that is not: it ended, or the token is one of the Python service.
    #[error("Token not found or expired")]
    NoSession,
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

/// Signs and verifies access tokens.
pub(crate) struct AccessTokens {
    signing: EncodingKey,
    /// The present key, then the one before it.
    verifying: Vec<DecodingKey>,
    validation: Validation,
    lifetime: Duration,
}

impl AccessTokens {
    /// `previous` still verifies, so that a key can be replaced with nobody logged out.
    pub(crate) fn new(
        key: &SecretSlice<u8>,
        previous: Option<&SecretSlice<u8>>,
        lifetime: Duration,
    ) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = 0;
        validation.validate_aud = false;
        validation.set_issuer(&[ISSUER]);
        Self {
            signing: EncodingKey::from_secret(key.expose_secret()),
            verifying: std::iter::once(key)
                .chain(previous)
                .map(|key| DecodingKey::from_secret(key.expose_secret()))
                .collect(),
            validation,
            lifetime,
        }
    }

    /// How long a token is valid.
    pub(crate) fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// A token for a session of a user, from `now` on.
    pub(crate) fn sign(&self, login: &Login, principal: Principal, now: DateTime<Utc>) -> String {
        let issued = now.timestamp();
        let lifetime = i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX);
        let claims = Claims {
            sub: Some(login.as_str().to_owned()),
            user_id: Some(principal.user.0),
            exp: issued.saturating_add(lifetime),
            iat: Some(issued),
            nbf: None,
            jti: Some(Uuid::new_v4().simple().to_string()),
            sid: Some(principal.session.to_string()),
            iss: Some(ISSUER.to_owned()),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.signing)
            .expect("claims are plain JSON and the key is one for HS256")
    }

    /// Who `token` speaks for.
    pub(crate) fn verify(&self, token: &str) -> Result<Principal, InvalidToken> {
        if token.len() > MAX_BYTES {
            return Err(InvalidToken::Malformed);
        }
        check_form(token)?;
        let mut outcome = Err(InvalidToken::Malformed);
        for key in &self.verifying {
            match jsonwebtoken::decode::<Claims>(token, key, &self.validation) {
                Ok(data) => return principal(&data.claims, Utc::now()),
                Err(error) if matches!(error.kind(), ErrorKind::ExpiredSignature) => {
                    outcome = Err(InvalidToken::Expired);
                }
                Err(_) => {}
            }
        }
        outcome
    }
}

/// Refuses a token with a name that comes twice, and one that says that more must be understood of
/// it than we do (RFC 7515, section 4.1.11).
fn check_form(token: &str) -> Result<(), InvalidToken> {
    let mut parts = token.split('.');
    let mut object = || parts.next().and_then(StrictObject::from_base64);
    match (object(), object()) {
        (Some(header), Some(_)) if !header.has("crit") => Ok(()),
        _ => Err(InvalidToken::Malformed),
    }
}

fn principal(claims: &Claims, now: DateTime<Utc>) -> Result<Principal, InvalidToken> {
    let (Some(user), Some(_)) = (claims.user_id, &claims.sub) else {
        return Err(InvalidToken::Payload);
    };
    let begins = claims.iat.max(claims.nbf);
    if begins.is_some_and(|begins| begins > now.timestamp() + LEEWAY) {
        return Err(InvalidToken::Malformed);
    }
    let session = claims.sid.as_deref().and_then(SessionId::parse);
    match (session, &claims.iss) {
        (Some(session), Some(_)) => Ok(Principal {
            user: UserId(user),
            session,
        }),
        _ => Err(InvalidToken::NoSession),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn tokens(key: &str) -> AccessTokens {
        AccessTokens::new(&SecretSlice::from(key.as_bytes().to_vec()), None, HOUR)
    }

    fn alice() -> (Login, Principal) {
        let principal = Principal {
            user: UserId(7),
            session: SessionId::random(),
        };
        (Login::new("alice").unwrap(), principal)
    }

    #[test]
    fn a_token_speaks_for_who_it_was_made_for_until_it_expires() {
        let (login, principal) = alice();
        let tokens = tokens("a key");
        let now = Utc::now();
        assert_eq!(
            tokens.verify(&tokens.sign(&login, principal, now)),
            Ok(principal)
        );
        let old = tokens.sign(&login, principal, now - HOUR - Duration::from_secs(1));
        assert_eq!(tokens.verify(&old), Err(InvalidToken::Expired));
    }

    #[test]
    fn a_token_of_another_key_or_algorithm_is_none() {
        let (login, principal) = alice();
        let theirs = tokens("another key").sign(&login, principal, Utc::now());
        assert_eq!(
            tokens("a key").verify(&theirs),
            Err(InvalidToken::Malformed)
        );
        let claims = theirs.split('.').nth(1).unwrap();
        // {"alg":"none","typ":"JWT"}
        let unsigned = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{claims}.");
        assert_eq!(
            tokens("a key").verify(&unsigned),
            Err(InvalidToken::Malformed)
        );
        assert_eq!(tokens("a key").verify("x"), Err(InvalidToken::Malformed));
        assert_eq!(
            tokens("a key").verify(&"x".repeat(9000)),
            Err(InvalidToken::Malformed)
        );
    }

    #[test]
    fn a_token_with_two_readings_is_none() {
        use base64::Engine as _;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let key = EncodingKey::from_secret(b"a key");
        let sign = |header: &str, claims: &str| {
            let text = [header, claims]
                .map(|part| URL_SAFE_NO_PAD.encode(part))
                .join(".");
            let seal = jsonwebtoken::crypto::sign(text.as_bytes(), &key, Algorithm::HS256).unwrap();
            format!("{text}.{seal}")
        };
        let sid = SessionId::random();
        let exp = Utc::now().timestamp() + 60;
        let claims =
            format!(r#""sub":"alice","user_id":7,"exp":{exp},"sid":"{sid}","iss":"auth-api""#);
        let header = r#"{"alg":"HS256"}"#;
        let good = sign(header, &format!("{{{claims}}}"));
        assert!(tokens("a key").verify(&good).is_ok());
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
            let verdict = tokens("a key").verify(&sign(header, &claims));
            assert_eq!(verdict, Err(InvalidToken::Malformed), "{header} {claims}");
        }
    }

    #[test]
    fn the_key_before_still_verifies() {
        let (login, principal) = alice();
        let old = SecretSlice::from(b"the old key".to_vec());
        let both = AccessTokens::new(
            &SecretSlice::from(b"the new key".to_vec()),
            Some(&old),
            HOUR,
        );
        let token = tokens("the old key").sign(&login, principal, Utc::now());
        assert_eq!(both.verify(&token), Ok(principal));
    }
}
