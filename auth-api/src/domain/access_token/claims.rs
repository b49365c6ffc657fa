//! Claims of access tokens, and what of them has to hold.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::invalid_access_token::InvalidAccessToken;
use super::verified_tokens::VerifiedToken;
use crate::domain::login::Login;
use crate::domain::principal::{Principal, SessionId};
use crate::domain::strict_json::StrictObject;
use crate::domain::user::UserId;

/// Issuer of tokens that are signed with `SECRET_KEY`, and the default one of the others.
pub(crate) const DEFAULT_ISSUER: &str = "auth-api";
/// Client of every token (RFC 9068, section 2.2): no other one exchanges passwords for tokens.
const CLIENT_ID: &str = "auth-api";
/// Tolerated clock difference between replicas, in seconds.
const CLOCK_SKEW_SECONDS: i64 = 30;

/// Members of a token that is signed with `SECRET_KEY`, as clients of the Python service know them.
#[derive(Serialize)]
pub(super) struct SymmetricClaims<'c> {
    sub: &'c str,
    user_id: i64,
    exp: i64,
    iat: i64,
    jti: String,
    sid: String,
    iss: &'c str,
}

/// Members of a token that is signed with a private key (RFC 9068, section 2.2). The subject is the id of the
/// user: a login may belong to another account after a deletion.
#[derive(Serialize)]
pub(super) struct PublicKeyClaims<'c> {
    iss: &'c str,
    sub: String,
    aud: &'c [String],
    client_id: &'c str,
    exp: i64,
    iat: i64,
    jti: String,
    sid: String,
    user_id: i64,
    login: &'c str,
}

/// Time for which a token is valid, in seconds of Unix time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Validity {
    pub(super) issued_at: i64,
    pub(super) expires_at: i64,
}

impl<'c> SymmetricClaims<'c> {
    pub(super) fn new(login: &'c Login, principal: Principal, validity: Validity) -> Self {
        Self {
            sub: login.as_str(),
            user_id: principal.user.0,
            exp: validity.expires_at,
            iat: validity.issued_at,
            jti: random_id(),
            sid: principal.session.to_string(),
            iss: DEFAULT_ISSUER,
        }
    }
}

impl<'c> PublicKeyClaims<'c> {
    pub(super) fn new(
        login: &'c Login,
        principal: Principal,
        validity: Validity,
        issuer: &'c str,
        audiences: &'c [String],
    ) -> Self {
        Self {
            iss: issuer,
            sub: principal.user.0.to_string(),
            aud: audiences,
            client_id: CLIENT_ID,
            exp: validity.expires_at,
            iat: validity.issued_at,
            jti: random_id(),
            sid: principal.session.to_string(),
            user_id: principal.user.0,
            login: login.as_str(),
        }
    }
}

fn random_id() -> String {
    Uuid::new_v4().simple().to_string()
}

/// Claims of a verified token that say more than who sends it, for introspection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VerifiedClaims {
    pub(crate) issuer: Option<String>,
    /// Empty if the token names none.
    pub(crate) audiences: Vec<String>,
    pub(crate) client_id: Option<String>,
    pub(crate) token_id: Option<String>,
    /// Unix time in seconds.
    pub(crate) issued_at: Option<i64>,
    pub(crate) expires_at: i64,
}

impl VerifiedClaims {
    /// Reads the claims of a token whose signature, expiry and types were verified.
    pub(super) fn of(payload: StrictObject) -> Option<Self> {
        let claims = Value::from(payload);
        let text = |name: &str| claims[name].as_str().map(str::to_owned);
        let audiences = match &claims["aud"] {
            Value::String(audience) => vec![audience.clone()],
            Value::Array(all) => all
                .iter()
                .filter_map(|audience| Some(audience.as_str()?.to_owned()))
                .collect(),
            _ => Vec::new(),
        };
        Some(Self {
            issuer: text("iss"),
            audiences,
            client_id: text("client_id"),
            token_id: text("jti"),
            issued_at: claims["iat"].as_i64(),
            expires_at: claims["exp"].as_i64()?,
        })
    }
}

/// Claims of a token whose signature was verified.
#[derive(Debug, Deserialize)]
pub(super) struct ReceivedClaims {
    sub: Option<String>,
    user_id: Option<i64>,
    exp: i64,
    iat: Option<i64>,
    nbf: Option<i64>,
    sid: Option<String>,
    iss: Option<String>,
    #[serde(default)]
    aud: Value,
}

impl ReceivedClaims {
    pub(super) fn parse(payload: StrictObject) -> Result<Self, InvalidAccessToken> {
        serde_json::from_value(payload.into()).map_err(|_| InvalidAccessToken::Malformed)
    }

    /// Checks the claims of a token that was signed with `SECRET_KEY`. The Python service issued those
    /// without an issuer.
    pub(super) fn check_symmetric(
        &self,
        now: DateTime<Utc>,
    ) -> Result<VerifiedToken, InvalidAccessToken> {
        self.check_expiry(now)?;
        if self
            .iss
            .as_ref()
            .is_some_and(|issuer| issuer != DEFAULT_ISSUER)
        {
            return Err(InvalidAccessToken::Malformed);
        }
        let token = self.check_times_and_session(now)?;
        if self.iss.is_none() {
            return Err(InvalidAccessToken::SessionNotFound);
        }
        Ok(token)
    }

    /// Checks the claims of a token that was signed with a private key: it is from `issuer`, and for one of
    /// `audiences`.
    pub(super) fn check_public_key(
        &self,
        issuer: &str,
        audiences: &[String],
        now: DateTime<Utc>,
    ) -> Result<VerifiedToken, InvalidAccessToken> {
        self.check_expiry(now)?;
        let is_for_us = match &self.aud {
            Value::String(audience) => audiences.contains(audience),
            // All of them are strings (RFC 7519, section 4.1.3).
            Value::Array(all) if all.iter().all(Value::is_string) => all
                .iter()
                .filter_map(Value::as_str)
                .any(|audience| audiences.iter().any(|ours| ours == audience)),
            _ => false,
        };
        if self.iss.as_deref() != Some(issuer) || !is_for_us {
            return Err(InvalidAccessToken::Malformed);
        }
        self.check_times_and_session(now)
    }

    fn check_expiry(&self, now: DateTime<Utc>) -> Result<(), InvalidAccessToken> {
        // It is not accepted on or after this second (RFC 7519, section 4.1.4).
        if self.exp <= now.timestamp() {
            return Err(InvalidAccessToken::Expired);
        }
        Ok(())
    }

    fn check_times_and_session(
        &self,
        now: DateTime<Utc>,
    ) -> Result<VerifiedToken, InvalidAccessToken> {
        let (Some(user), Some(_)) = (self.user_id, &self.sub) else {
            return Err(InvalidAccessToken::InvalidPayload);
        };
        let valid_from = self.iat.max(self.nbf);
        if valid_from.is_some_and(|valid_from| valid_from > now.timestamp() + CLOCK_SKEW_SECONDS) {
            return Err(InvalidAccessToken::Malformed);
        }
        let session = self.sid.as_deref().and_then(SessionId::parse);
        let session = session.ok_or(InvalidAccessToken::SessionNotFound)?;
        Ok(VerifiedToken {
            principal: Principal {
                user: UserId(user),
                session,
            },
            expires_at: self.exp,
        })
    }
}
