//! Access tokens: JWT (RFC 7519), verified as RFC 8725 recommends.
//!
//! A token is signed with a private Ed25519 key in the profile of RFC 9068, which every service can verify by the
//! public keys, or with `SECRET_KEY` (HS256) in the form that clients of the Python service know. While replicas
//! change from one to the other, each verifies both.
//!
//! A key is bound to its algorithm. The key is looked up by the header's `kid`, which tokens of `SECRET_KEY` do not
//! have; the header's `alg` has to name the algorithm of that key, and selects nothing (RFC 8725, section 3.1).

mod claims;
mod invalid_access_token;
mod jws;
mod verified_tokens;

use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

pub(crate) use claims::{DEFAULT_ISSUER, VerifiedClaims};
pub(crate) use invalid_access_token::InvalidAccessToken;

use self::claims::{PublicKeyClaims, ReceivedClaims, SymmetricClaims, Validity};
use self::jws::Jws;
use self::verified_tokens::{TokenDigest, VerifiedToken, VerifiedTokens};
use super::login::Login;
use super::principal::Principal;
use super::secret_keys::SecretKeys;
use super::signing_keys::{EDDSA, SigningKey, SigningKeys};

/// Longest token that is parsed. Tokens of this service have about 500 bytes.
const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// Shortest time between two warnings about tokens of unknown keys.
const UNKNOWN_KEY_INTERVAL: Duration = Duration::from_mins(1);
const HS256: &str = "HS256";
/// Header of tokens that are signed with `SECRET_KEY`.
const SYMMETRIC_HEADER: &str = r#"{"typ":"JWT","alg":"HS256"}"#;
/// Type of the others, which tells them from other JWTs that are signed with the same keys (RFC 9068, section 2.1).
const ACCESS_TOKEN_TYPE: &str = "at+jwt";
/// The same with the prefix that RFC 7515, section 4.1.9, recommends to leave out.
const ACCESS_TOKEN_MEDIA_TYPE: &str = "application/at+jwt";

/// Treatment of tokens that are signed with `SECRET_KEY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SymmetricTokens {
    Accept,
    /// All tokens are signed with private keys.
    Reject,
}

/// Contents and lifetime of tokens.
#[derive(Debug, Clone)]
pub(crate) struct AccessTokenPolicy {
    pub(crate) lifetime: Duration,
    /// Issuer and audiences of tokens that are signed with a private key.
    pub(crate) issuer: String,
    pub(crate) audiences: Vec<String>,
    pub(crate) symmetric_tokens: SymmetricTokens,
}

/// Keys that sign and verify access tokens.
pub(crate) struct AccessTokenKeys {
    private: SigningKeys,
    /// The key that signs if there is no private one.
    secret: hmac::Key,
    /// The secret keys that verify, the current one first. None if such tokens are rejected.
    verifying_secrets: Vec<hmac::Key>,
    policy: AccessTokenPolicy,
    verified: VerifiedTokens,
    unknown_key_warned_at: Mutex<Option<Instant>>,
}

impl AccessTokenKeys {
    pub(crate) fn new(
        secrets: &SecretKeys,
        private: SigningKeys,
        policy: AccessTokenPolicy,
    ) -> Self {
        let hmac_key = |secret: &secrecy::SecretSlice<u8>| {
            hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret())
        };
        let verifying_secrets = match policy.symmetric_tokens {
            SymmetricTokens::Accept => secrets.verifying().map(hmac_key).collect(),
            SymmetricTokens::Reject => Vec::new(),
        };
        Self {
            private,
            secret: hmac_key(secrets.current()),
            verifying_secrets,
            policy,
            verified: VerifiedTokens::default(),
            unknown_key_warned_at: Mutex::default(),
        }
    }

    pub(crate) fn lifetime(&self) -> Duration {
        self.policy.lifetime
    }

    /// Returns the public keys that verify tokens, as a JWK set.
    pub(crate) fn jwk_set(&self) -> Value {
        self.private.jwk_set()
    }

    /// Signs a token for `principal` that is valid from `now` on.
    pub(crate) fn sign(&self, login: &Login, principal: Principal, now: DateTime<Utc>) -> String {
        let issued_at = now.timestamp();
        let lifetime = i64::try_from(self.policy.lifetime.as_secs()).unwrap_or(i64::MAX);
        let validity = Validity {
            issued_at,
            expires_at: issued_at.saturating_add(lifetime),
        };
        if let Some(key) = self.private.current() {
            return self.sign_with_private_key(key, login, principal, validity);
        }
        let claims = SymmetricClaims::new(login, principal, validity);
        jws::encode(SYMMETRIC_HEADER, &claims, |message| {
            hmac::sign(&self.secret, message).as_ref().to_vec()
        })
    }

    fn sign_with_private_key(
        &self,
        key: &SigningKey,
        login: &Login,
        principal: Principal,
        validity: Validity,
    ) -> String {
        let AccessTokenPolicy {
            issuer, audiences, ..
        } = &self.policy;
        let claims = PublicKeyClaims::new(login, principal, validity, issuer, audiences);
        let kid = key.public().kid();
        let header = json!({"alg": EDDSA, "kid": kid, "typ": ACCESS_TOKEN_TYPE});
        jws::encode(&header.to_string(), &claims, |message| key.sign(message))
    }

    /// Returns the principal of `token`, whose session may have ended.
    ///
    /// # Errors
    /// Returns an error if the token is malformed, has expired or was not signed by this service.
    pub(crate) fn verify(&self, token: &str) -> Result<Principal, InvalidAccessToken> {
        self.verify_at(token, Utc::now())
    }

    /// Like [`Self::verify`], and returns what the token says beside its principal.
    ///
    /// # Errors
    /// Returns an error if the token is malformed, has expired or was not signed by this service.
    pub(crate) fn verify_claims(
        &self,
        token: &str,
    ) -> Result<(Principal, VerifiedClaims), InvalidAccessToken> {
        let principal = self.verify(token)?;
        let jws = Jws::parse(token).ok_or(InvalidAccessToken::Malformed)?;
        let claims = VerifiedClaims::of(jws.payload).ok_or(InvalidAccessToken::Malformed)?;
        Ok((principal, claims))
    }

    /// Returns the issuer of the tokens that are signed now.
    pub(crate) fn issuer(&self) -> &str {
        match self.private.current() {
            Some(_) => &self.policy.issuer,
            None => DEFAULT_ISSUER,
        }
    }

    pub(crate) fn verify_at(
        &self,
        token: &str,
        now: DateTime<Utc>,
    ) -> Result<Principal, InvalidAccessToken> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(InvalidAccessToken::Malformed);
        }
        let digest = TokenDigest::of(token);
        let verified = match self.verified.get(&digest) {
            Some(verified) if verified.expires_at <= now.timestamp() => {
                return Err(InvalidAccessToken::Expired);
            }
            Some(verified) => verified,
            None => {
                let jws = Jws::parse(token).ok_or(InvalidAccessToken::Malformed)?;
                let verified = match jws.header.text("kid").map(str::to_owned) {
                    Some(kid) => self.verify_with_public_key(&kid, jws, now)?,
                    None => self.verify_symmetric(jws, now)?,
                };
                self.verified.insert(digest, verified);
                verified
            }
        };
        Ok(verified.principal)
    }

    fn verify_symmetric(
        &self,
        jws: Jws<'_>,
        now: DateTime<Utc>,
    ) -> Result<VerifiedToken, InvalidAccessToken> {
        let message = jws.signed.as_bytes();
        let is_valid = jws.header.text("alg") == Some(HS256)
            && !jws.header.has("kid")
            && self
                .verifying_secrets
                .iter()
                .any(|key| hmac::verify(key, message, &jws.signature).is_ok());
        if !is_valid {
            return Err(InvalidAccessToken::Malformed);
        }
        ReceivedClaims::parse(jws.payload)?.check_symmetric(now)
    }

    fn verify_with_public_key(
        &self,
        kid: &str,
        jws: Jws<'_>,
        now: DateTime<Utc>,
    ) -> Result<VerifiedToken, InvalidAccessToken> {
        let Some(key) = self.private.public_key(kid) else {
            self.warn_about_unknown_key(kid);
            return Err(InvalidAccessToken::Malformed);
        };
        let is_access_token = jws.header.text("typ").is_some_and(|name| {
            [ACCESS_TOKEN_TYPE, ACCESS_TOKEN_MEDIA_TYPE]
                .iter()
                .any(|known| name.eq_ignore_ascii_case(known))
        });
        if jws.header.text("alg") != Some(EDDSA)
            || !is_access_token
            || !key.verifies(jws.signed.as_bytes(), &jws.signature)
        {
            return Err(InvalidAccessToken::Malformed);
        }
        let AccessTokenPolicy {
            issuer, audiences, ..
        } = &self.policy;
        ReceivedClaims::parse(jws.payload)?.check_public_key(issuer, audiences, now)
    }

    /// Tells operators of a token that another replica may have signed. Anybody can send one: at most once in
    /// [`UNKNOWN_KEY_INTERVAL`], and only if the name has the form of one of our keys.
    fn warn_about_unknown_key(&self, kid: &str) {
        if !is_thumbprint(kid) {
            return;
        }
        let mut warned_at = self.unknown_key_warned_at.lock();
        if warned_at.is_none_or(|at| at.elapsed() >= UNKNOWN_KEY_INTERVAL) {
            *warned_at = Some(Instant::now());
            tracing::warn!(
                kid,
                "an access token names a key that this replica does not have: if it is one of yours, the replicas differ in SIGNING_KEY, SIGNING_KEY_PREVIOUS or SIGNING_KEY_NEXT"
            );
        }
    }
}

/// Returns whether a text has the form of a SHA-256 thumbprint (RFC 7638) in base64url.
fn is_thumbprint(text: &str) -> bool {
    text.len() == 43
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::super::principal::SessionId;
    use super::super::signing_keys::tests::{KEY, OTHER_KEY, key};
    use super::super::user::UserId;
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn policy(symmetric_tokens: SymmetricTokens) -> AccessTokenPolicy {
        AccessTokenPolicy {
            lifetime: HOUR,
            issuer: "https://auth.example.org".to_owned(),
            audiences: vec!["auth-api".to_owned(), "orders".to_owned()],
            symmetric_tokens,
        }
    }

    /// Keys of a replica that signs with a secret key.
    fn keys(secret: &str) -> AccessTokenKeys {
        let secrets = SecretKeys::of(secret, &[]);
        let policy = policy(SymmetricTokens::Accept);
        AccessTokenKeys::new(&secrets, SigningKeys::default(), policy)
    }

    /// Keys of a replica with private keys, of which the first one signs.
    fn private_keys(pems: &[&str], symmetric_tokens: SymmetricTokens) -> AccessTokenKeys {
        let mut all = pems.iter().map(|pem| key(pem));
        let current = all.next();
        let private = SigningKeys::new(current, &all.collect::<Vec<_>>());
        let secrets = SecretKeys::of("a key", &[]);
        AccessTokenKeys::new(&secrets, private, policy(symmetric_tokens))
    }

    fn alice() -> (Login, Principal) {
        let principal = Principal {
            user: UserId(7),
            session: SessionId::random(),
        };
        (Login::new("alice").unwrap(), principal)
    }

    fn decoded(token: &str, part: usize) -> Value {
        let text = token.split('.').nth(part).unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap()
    }

    #[test]
    fn a_token_is_valid_for_its_principal_until_it_expires() {
        let (login, principal) = alice();
        let now = Utc::now();
        for keys in [keys("a key"), private_keys(&[KEY], SymmetricTokens::Accept)] {
            let token = keys.sign(&login, principal, now);
            assert_eq!(keys.verify(&token), Ok(principal));
            let last_second = now + HOUR - Duration::from_secs(1);
            assert_eq!(keys.verify_at(&token, last_second), Ok(principal));
            // It was verified before, and is remembered.
            let expired = Err(InvalidAccessToken::Expired);
            assert_eq!(keys.verify_at(&token, now + HOUR), expired);
            let old = keys.sign(&login, principal, now - HOUR);
            assert_eq!(keys.verify_at(&old, now), expired);
        }
    }

    #[test]
    fn a_token_with_another_key_or_algorithm_is_rejected() {
        let (login, principal) = alice();
        let foreign = keys("another key").sign(&login, principal, Utc::now());
        let claims = foreign.split('.').nth(1).unwrap();
        // {"alg":"none","typ":"JWT"}
        let unsigned = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{claims}.");
        let foreign_private = private_keys(&[OTHER_KEY], SymmetricTokens::Accept);
        let foreign_private = foreign_private.sign(&login, principal, Utc::now());
        for keys in [keys("a key"), private_keys(&[KEY], SymmetricTokens::Accept)] {
            for token in [
                &foreign,
                &unsigned,
                "x",
                &"x".repeat(9000),
                &foreign_private,
            ] {
                assert_eq!(
                    keys.verify(token),
                    Err(InvalidAccessToken::Malformed),
                    "{token}"
                );
            }
        }
    }

    /// Signs JSON texts with the secret key `a key`.
    fn sign_symmetric(header: &str, claims: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"a key");
        sign_texts(header, claims, |text| {
            hmac::sign(&key, text).as_ref().to_vec()
        })
    }

    fn sign_texts(header: &str, claims: &str, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
        let text = [header, claims]
            .map(|part| URL_SAFE_NO_PAD.encode(part))
            .join(".");
        let signature = URL_SAFE_NO_PAD.encode(sign(text.as_bytes()));
        format!("{text}.{signature}")
    }

    #[test]
    fn an_ambiguous_token_is_rejected() {
        let sid = SessionId::random();
        let exp = Utc::now().timestamp() + 60;
        let claims =
            format!(r#""sub":"alice","user_id":7,"exp":{exp},"sid":"{sid}","iss":"auth-api""#);
        let header = r#"{"alg":"HS256"}"#;
        let valid = sign_symmetric(header, &format!("{{{claims}}}"));
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
            // jsonwebtoken took a time of another type for none (CVE-2026-25537).
            (header, format!(r#"{{"nbf":"{future}",{claims}}}"#)),
            (header, format!(r#"{{"iat":"{future}",{claims}}}"#)),
            (header, format!(r#"{{"nbf":{future}.5,{claims}}}"#)),
            (
                header,
                format!("{{{}}}", claims.replace(&exp.to_string(), "\"never\"")),
            ),
            (
                header,
                format!("{{{}}}", claims.replace("auth-api", "another")),
            ),
            (r#"{"alg":"HS256","alg":"HS256"}"#, format!("{{{claims}}}")),
            (r#"{"alg":"HS256","kid":"x"}"#, format!("{{{claims}}}")),
            (
                r#"{"alg":"HS256","crit":["b64"],"b64":false}"#,
                format!("{{{claims}}}"),
            ),
            (r#"{"alg":"HS384"}"#, format!("{{{claims}}}")),
        ] {
            let result = keys("a key").verify(&sign_symmetric(header, &claims));
            assert_eq!(
                result,
                Err(InvalidAccessToken::Malformed),
                "{header} {claims}"
            );
        }
        let python = format!(r#"{{"sub":"alice","user_id":7,"exp":{exp}}}"#);
        let python = keys("a key").verify(&sign_symmetric(header, &python));
        assert_eq!(python, Err(InvalidAccessToken::SessionNotFound));
        let incomplete =
            keys("a key").verify(&sign_symmetric(header, &format!(r#"{{"exp":{exp}}}"#)));
        assert_eq!(incomplete, Err(InvalidAccessToken::InvalidPayload));
    }

    #[test]
    fn a_token_of_a_private_key_has_the_profile_of_rfc_9068_and_no_other_is_accepted() {
        let (login, principal) = alice();
        let keys = private_keys(&[KEY], SymmetricTokens::Accept);
        let signing = key(KEY);
        let token = keys.sign(&login, principal, Utc::now());
        let (header, claims) = (decoded(&token, 0), decoded(&token, 1));
        assert_eq!(
            header,
            json!({"alg": "EdDSA", "typ": "at+jwt", "kid": signing.public().kid()})
        );
        for (name, value) in [
            ("iss", json!("https://auth.example.org")),
            ("sub", json!("7")),
            ("aud", json!(["auth-api", "orders"])),
            ("client_id", json!("auth-api")),
            ("user_id", json!(7)),
            ("login", json!("alice")),
            ("sid", json!(principal.session.to_string())),
        ] {
            assert_eq!(claims[name], value, "{name}");
        }
        assert_eq!(claims["jti"].as_str().map(str::len), Some(32));

        let sign = |header: &Value, claims: &Value| {
            sign_texts(&header.to_string(), &claims.to_string(), |text| {
                signing.sign(text)
            })
        };
        let with = |object: &Value, name: &str, value: Value| {
            let mut changed = object.clone();
            changed[name] = value;
            changed
        };
        let future = Utc::now().timestamp() + 3600;
        for (header, claims, expected) in [
            (header.clone(), claims.clone(), Ok(principal)),
            (
                with(&header, "typ", json!("application/AT+JWT")),
                with(&claims, "aud", json!("orders")),
                Ok(principal),
            ),
            (
                header.clone(),
                with(&claims, "sub", Value::Null),
                Err(InvalidAccessToken::InvalidPayload),
            ),
            (
                header.clone(),
                with(&claims, "sid", json!("x")),
                Err(InvalidAccessToken::SessionNotFound),
            ),
        ] {
            assert_eq!(
                keys.verify(&sign(&header, &claims)),
                expected,
                "{header} {claims}"
            );
        }
        for (header, claims) in [
            (with(&header, "alg", json!("HS256")), claims.clone()),
            (with(&header, "alg", json!("none")), claims.clone()),
            (with(&header, "alg", json!("Ed25519")), claims.clone()),
            (with(&header, "typ", json!("JWT")), claims.clone()),
            (with(&header, "typ", Value::Null), claims.clone()),
            (with(&header, "kid", json!("another")), claims.clone()),
            (with(&header, "kid", json!(1)), claims.clone()),
            (with(&header, "crit", json!(["exp"])), claims.clone()),
            (header.clone(), with(&claims, "iss", json!("auth-api"))),
            (header.clone(), with(&claims, "iss", Value::Null)),
            (header.clone(), with(&claims, "aud", json!(["payments"]))),
            (
                header.clone(),
                with(&claims, "aud", json!(["auth-api", {}])),
            ),
            (header.clone(), with(&claims, "aud", Value::Null)),
            (header.clone(), with(&claims, "exp", Value::Null)),
            (header.clone(), with(&claims, "iat", json!(future))),
        ] {
            let result = keys.verify(&sign(&header, &claims));
            assert_eq!(
                result,
                Err(InvalidAccessToken::Malformed),
                "{header} {claims}"
            );
        }
    }

    #[test]
    fn a_public_key_is_no_secret_key() {
        // Algorithm confusion (RFC 8725, section 2.1): the public key as an HMAC key.
        let (login, principal) = alice();
        let keys = private_keys(&[KEY], SymmetricTokens::Accept);
        let token = keys.sign(&login, principal, Utc::now());
        let claims = decoded(&token, 1).to_string();
        let x = keys.jwk_set()["keys"][0]["x"].as_str().unwrap().to_owned();
        for secret in [URL_SAFE_NO_PAD.decode(&x).unwrap(), x.into_bytes()] {
            let secret = hmac::Key::new(hmac::HMAC_SHA256, &secret);
            for header in [
                r#"{"alg":"HS256"}"#.to_owned(),
                json!({"alg": "HS256", "kid": key(KEY).public().kid()}).to_string(),
            ] {
                let forged = sign_texts(&header, &claims, |text| {
                    hmac::sign(&secret, text).as_ref().to_vec()
                });
                assert_eq!(keys.verify(&forged), Err(InvalidAccessToken::Malformed));
            }
        }
    }

    #[test]
    fn tokens_of_secret_keys_are_rejected_on_request() {
        let (login, principal) = alice();
        let token = keys("a key").sign(&login, principal, Utc::now());
        let accepting = private_keys(&[KEY], SymmetricTokens::Accept);
        assert_eq!(accepting.verify(&token), Ok(principal));
        let rejecting = private_keys(&[KEY], SymmetricTokens::Reject);
        assert_eq!(rejecting.verify(&token), Err(InvalidAccessToken::Malformed));
    }

    #[test]
    fn a_token_signed_with_a_previous_or_next_key_is_accepted() {
        let (login, principal) = alice();
        let others = ["a previous key", "an older key", "the next key"];
        let keys_of_all = AccessTokenKeys::new(
            &SecretKeys::of("the key", &others),
            SigningKeys::default(),
            policy(SymmetricTokens::Accept),
        );
        for signing in others {
            let token = keys(signing).sign(&login, principal, Utc::now());
            assert_eq!(keys_of_all.verify(&token), Ok(principal), "{signing}");
        }
        let foreign = keys("another key").sign(&login, principal, Utc::now());
        assert_eq!(
            keys_of_all.verify(&foreign),
            Err(InvalidAccessToken::Malformed)
        );
        let both = private_keys(&[KEY, OTHER_KEY], SymmetricTokens::Accept);
        for signing in [KEY, OTHER_KEY] {
            let keys = private_keys(&[signing], SymmetricTokens::Accept);
            let token = keys.sign(&login, principal, Utc::now());
            assert_eq!(both.verify(&token), Ok(principal));
        }
    }

    #[test]
    fn the_claims_of_a_token_are_known_as_they_were_signed() {
        let (login, principal) = alice();
        let now = Utc::now();
        for (keys, issuer, audiences) in [
            (keys("a key"), "auth-api", &[][..]),
            (
                private_keys(&[KEY], SymmetricTokens::Accept),
                "https://auth.example.org",
                &["auth-api", "orders"],
            ),
        ] {
            let token = keys.sign(&login, principal, now);
            let (verified, claims) = keys.verify_claims(&token).unwrap();
            assert_eq!(verified, principal);
            assert_eq!(keys.issuer(), issuer);
            assert_eq!(claims.issuer.as_deref(), Some(issuer));
            assert_eq!(claims.audiences, audiences);
            assert_eq!(
                claims.token_id.as_deref(),
                decoded(&token, 1)["jti"].as_str()
            );
            let expires_at = now.timestamp() + i64::try_from(keys.lifetime().as_secs()).unwrap();
            assert_eq!(claims.issued_at, Some(now.timestamp()));
            assert_eq!(claims.expires_at, expires_at);
            let invalid = keys.verify_claims(&token[1..]);
            assert_eq!(invalid, Err(InvalidAccessToken::Malformed));
        }
        // Another program with the key may have signed others.
        let exp = now.timestamp() + 60;
        for (aud, audiences) in [
            (r#""orders""#, &["orders"][..]),
            (r#"["orders",1]"#, &["orders"]),
            ("1", &[]),
        ] {
            let session = principal.session;
            let claims = format!(
                r#"{{"sub":"alice","user_id":7,"exp":{exp},"sid":"{session}","iss":"auth-api","aud":{aud}}}"#
            );
            let token = sign_symmetric(r#"{"alg":"HS256"}"#, &claims);
            let (_, claims) = keys("a key").verify_claims(&token).unwrap();
            assert_eq!(claims.audiences, audiences, "{aud}");
            assert_eq!((claims.client_id, claims.issued_at), (None, None));
        }
    }
}
