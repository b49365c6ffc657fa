//! Access to decoders for the fuzz targets of `fuzz/`, in plain types. It decides nothing itself: what holds for a
//! result is checked there, by other implementations.

use std::fmt;
use std::time::Duration;

use chrono::DateTime;
use secrecy::SecretSlice;

use crate::domain::access_token::{AccessTokenKeys, AccessTokenPolicy, SymmetricTokens};
use crate::domain::password_hash::PasswordHash;
use crate::domain::principal::{Principal, SessionId};
use crate::domain::refresh_token::{RefreshToken, RefreshTokenKeys};
use crate::domain::secret_keys::SecretKeys;
use crate::domain::session_cutoff::AuthTime;
use crate::domain::signing_keys::{SigningKey, SigningKeys};
use crate::domain::time;
use crate::domain::user::UserId;
use crate::http::json_body::JsonObject;
use crate::sessions::rows as session_rows;
use crate::store::postgres::Timestamp;
use crate::users::rows;

/// User and session that a token names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenPrincipal {
    pub user: i64,
    pub session: [u8; 16],
}

impl From<Principal> for TokenPrincipal {
    fn from(principal: Principal) -> Self {
        Self {
            user: principal.user.0,
            session: *principal.session.as_bytes(),
        }
    }
}

/// Keys of a replica.
pub struct ReplicaKeys {
    access: AccessTokenKeys,
    refresh: RefreshTokenKeys,
}

impl ReplicaKeys {
    /// Creates the keys of a replica that accepts tokens of `SECRET_KEY` and of an Ed25519 key in PEM.
    ///
    /// # Panics
    /// Panics if `signing_key` is no such key.
    #[must_use]
    pub fn new(secret: &[u8], signing_key: Option<&str>, issuer: &str, audience: &str) -> Self {
        let secrets = SecretKeys::new(SecretSlice::from(secret.to_vec()), Vec::new());
        let signing_key =
            signing_key.map(|pem| SigningKey::from_pem(pem).expect("an Ed25519 key").remove(0));
        let policy = AccessTokenPolicy {
            lifetime: Duration::from_hours(1),
            issuer: issuer.to_owned(),
            audiences: vec![audience.to_owned()],
            symmetric_tokens: SymmetricTokens::Accept,
        };
        Self {
            access: AccessTokenKeys::new(&secrets, SigningKeys::new(signing_key, &[]), policy),
            refresh: RefreshTokenKeys::new(&secrets),
        }
    }

    /// Verifies an access token at a time in seconds since 1970. Returns `None` if it is not accepted.
    #[must_use]
    pub fn verify_access_token(&self, token: &str, now: i64) -> Option<TokenPrincipal> {
        let now = DateTime::from_timestamp_secs(now)?;
        self.access.verify_at(token, now).ok().map(Into::into)
    }

    /// Issues a refresh token with a random secret.
    #[must_use]
    pub fn issue_refresh_token(&self, principal: TokenPrincipal) -> String {
        self.refresh.encode(&RefreshToken::random(Principal {
            user: UserId(principal.user),
            session: SessionId::from_bytes(principal.session),
        }))
    }

    /// Decodes a refresh token. Returns its principal and its text form, `None` if it is not accepted.
    #[must_use]
    pub fn decode_refresh_token(&self, text: &str) -> Option<(TokenPrincipal, String)> {
        let token = self.refresh.decode(text)?;
        Some((token.principal.into(), self.refresh.encode(&token)))
    }
}

impl fmt::Debug for ReplicaKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ReplicaKeys")
            .finish_non_exhaustive()
    }
}

/// Returns the string `field` of a JSON body.
///
/// # Errors
/// Returns the problem as the client sees it, in JSON.
///
/// # Panics
/// Panics if the problem is not plain data.
pub fn string_in_body(body: &[u8], field: &'static str) -> Result<String, String> {
    let object = JsonObject::parse(body);
    let text = object.and_then(|object| object.string(field).map(str::to_owned));
    text.map_err(|problem| serde_json::to_string(&problem).expect("a problem is plain data"))
}

/// Parsed bcrypt hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bcrypt {
    pub cost: u32,
    pub salt: [u8; 16],
    /// True if the digest that was asked about is that of the hash.
    pub matches: bool,
}

/// Parses a stored password hash. Returns `None` if it is no bcrypt hash, so that no password matches.
#[must_use]
pub fn parse_password_hash(text: &str, digest: &[u8; 24]) -> Option<Bcrypt> {
    let hash = PasswordHash::from_stored(text.to_owned());
    assert_eq!(hash.as_str(), text);
    let bcrypt = hash.as_bcrypt()?;
    Some(Bcrypt {
        cost: bcrypt.cost,
        salt: bcrypt.salt,
        matches: bcrypt.matches(digest),
    })
}

/// Formats a password hash as it is stored.
#[must_use]
pub fn format_password_hash(cost: u32, salt: [u8; 16], digest: &[u8; 24]) -> String {
    PasswordHash::new(cost, salt, digest).as_str().to_owned()
}

/// Row of the table of accounts.
#[derive(Debug, Clone)]
pub struct AccountRow {
    pub id: i64,
    pub login: String,
    pub password_hash: String,
    pub is_disabled: bool,
    pub sessions_valid_after: Option<i64>,
}

/// Decodes a row, and returns whether a session whose password was verified at `auth_time` may act for the account.
#[must_use]
pub fn permits_session(row: AccountRow, auth_time: i64) -> bool {
    let account = rows::to_account(
        row.id,
        row.login,
        row.password_hash,
        row.is_disabled,
        row.sessions_valid_after,
    );
    let auth_time = AuthTime(auth_time);
    let _ = (auth_time.to_utc(), auth_time.latest_cutoff());
    account.standing.permits(auth_time)
}

/// Stored session: id, time of creation and last use, address, user agent, time of the password's verification.
pub type SessionRow = (String, i64, i64, String, String, i64);

/// Store of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionStore {
    /// Times are in milliseconds since 1970.
    Redis,
    /// Times are in microseconds since 1970.
    Sqlite,
}

/// Decodes a stored session. Returns its id, and the times as clients see them; `None` if it is damaged.
#[must_use]
pub fn decode_session(row: SessionRow, store: SessionStore) -> Option<(String, [String; 2])> {
    let session = match store {
        SessionStore::Redis => session_rows::to_active_session(row, session_rows::time_from_millis),
        SessionStore::Sqlite => session_rows::to_active_session(row, time::from_micros),
    };
    let session = session.ok()?;
    let times = [session.created_at, session.last_used].map(|time| time.to_rfc3339());
    Some((session.id.to_string(), times))
}

/// Decodes a time that PostgreSQL sent, in microseconds since 2000. Returns it as clients see it, `None` if they cannot
/// represent it.
#[must_use]
pub fn decode_postgres_time(micros: i64) -> Option<String> {
    let time = Timestamp::from_server(micros).to_datetime()?;
    Some(time.to_rfc3339())
}
