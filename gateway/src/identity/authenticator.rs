//! Authenticator: determines the identity of a request by its access token.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use aws_lc_rs::digest::{SHA256, digest};
use http::{HeaderMap, HeaderName, StatusCode};
use session_invalidation::{CheckGates, Owner, SessionId, UserId};
use supervision::Supervisor;
use thiserror::Error;

use crate::client::ClientKey;
use crate::config::IdentitySettings;
use crate::http::h1::encode::put_header;
use crate::identity::bearer::{self, Credentials};
use crate::identity::failure_limit::FailureLimit;
use crate::identity::key_source::KeySource;
use crate::identity::revocations::{TokenHash, VerifiedTokens};
use crate::identity::token::{self, Expected, InvalidToken, Signature};
use crate::identity::user_identity::{Identity, SESSION_ID, SharedIdentity, USER_ID, USER_LOGIN};
use crate::runtime::clock::{Instant, unix_seconds};
use crate::telemetry::event_interval::EventInterval;
use crate::telemetry::metrics::IdentityMetrics;
use crate::upstream::{OriginClient, OriginResponse, SharedConnector};

/// Time for the check of a token at the verify endpoint, all attempts together.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest body of the verify endpoint, which is not used.
const MAX_BODY_BYTES: usize = 16 * 1024;
/// Interval at which the addresses of the verify endpoint are looked up.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(2);
/// Names of the tasks in the metrics.
const KEYS_TASK: &str = "identity_keys";
const ENDPOINT_TASK: &str = "identity_endpoint";

/// Determines the identity of requests.
#[derive(Debug)]
pub(crate) struct Authenticator {
    pub(crate) settings: IdentitySettings,
    keys: Option<KeySource>,
    verify: OriginClient,
    verified: Option<VerifiedTokens>,
    gates: CheckGates<TokenHash, Result<SharedIdentity, IdentityError>>,
    failures: FailureLimit,
    failure_logged: EventInterval,
    foreign_logged: EventInterval,
    metrics: IdentityMetrics,
}

/// Identity of a request, as far as it is known without a check.
#[derive(Debug)]
pub(crate) enum Found<'r> {
    /// The request has no token.
    Anonymous,
    Identity(SharedIdentity),
    /// The token is not remembered: [`Authenticator::check`] determines the identity.
    Unchecked(UncheckedToken<'r>),
}

/// Token that is not remembered.
#[derive(Debug)]
pub(crate) struct UncheckedToken<'r> {
    token: &'r str,
    hash: TokenHash,
}

/// Reason why a request has no identity although it carries credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum IdentityError {
    #[error("Multiple Authorization headers")]
    Ambiguous,
    #[error(transparent)]
    Invalid(#[from] InvalidToken),
    /// The client has presented too many invalid tokens.
    #[error("Too many invalid tokens")]
    TooManyFailures { retry_after: Duration },
    /// The token cannot be checked now.
    #[error("Service unavailable")]
    Unavailable,
}

impl Authenticator {
    /// Creates an authenticator that remembers no token. `connector` is that of the gateway.
    ///
    /// # Errors
    /// Returns an error if the authorities that the system trusts are needed and cannot be read.
    pub(crate) fn new(
        settings: &IdentitySettings,
        metrics: &IdentityMetrics,
        connector: &SharedConnector,
    ) -> Result<Self> {
        let key_source = |url| KeySource::new(url, connector);
        Ok(Self {
            settings: settings.clone(),
            keys: settings.keys.as_ref().map(key_source).transpose()?,
            verify: OriginClient::new(settings.verify.clone(), MAX_BODY_BYTES, connector)?,
            verified: settings.sessions.as_ref().map(VerifiedTokens::new),
            gates: CheckGates::default(),
            failures: FailureLimit::default(),
            failure_logged: EventInterval::default(),
            foreign_logged: EventInterval::default(),
            metrics: metrics.clone(),
        })
    }

    /// Runs the background tasks without end: they stop when the future is dropped.
    pub(crate) async fn run(&self, supervisor: &Supervisor) {
        let keys = async {
            if let Some(keys) = &self.keys {
                supervisor.run(KEYS_TASK, || keys.run(&self.metrics)).await;
            }
        };
        let verified = async {
            if let Some(verified) = &self.verified {
                verified.run(supervisor, &self.metrics).await;
            }
        };
        let endpoint = supervisor.run(ENDPOINT_TASK, || self.maintain_endpoint());
        tokio::join!(keys, verified, endpoint);
    }

    async fn maintain_endpoint(&self) {
        loop {
            if let Err(error) = self.verify.maintain().await {
                tracing::debug!(%error, "verify endpoint cannot be found");
            }
            tokio::time::sleep(MAINTENANCE_INTERVAL).await;
        }
    }

    /// Returns what is known about the identity of a request with `headers`.
    ///
    /// # Errors
    /// Returns an error if the credentials cannot be valid.
    pub(crate) fn find<'r>(&self, headers: &'r HeaderMap) -> Result<Found<'r>, IdentityError> {
        let token = match bearer::credentials(headers) {
            Credentials::None => return Ok(Found::Anonymous),
            Credentials::Token(token) => token,
            Credentials::Malformed => {
                self.metrics.invalid.inc();
                return Err(InvalidToken::Invalid.into());
            }
            Credentials::Ambiguous => {
                self.metrics.invalid.inc();
                return Err(IdentityError::Ambiguous);
            }
        };
        let hash = digest(&SHA256, token.as_bytes());
        let hash = hash.as_ref().try_into().expect("SHA-256 has 32 bytes");
        if let Some(verified) = &self.verified
            && let Ok(identity) = verified.get(&hash)
        {
            self.metrics.remembered.inc();
            return Ok(Found::Identity(identity));
        }
        Ok(Found::Unchecked(UncheckedToken { token, hash }))
    }

    /// Checks a token that is not remembered.
    ///
    /// # Errors
    /// Returns an error if it is invalid, or cannot be checked.
    pub(crate) async fn check(
        &self,
        unchecked: UncheckedToken<'_>,
        client: ClientKey,
    ) -> Result<SharedIdentity, IdentityError> {
        let result = self.check_uncounted(unchecked, client).await;
        match &result {
            Ok(_) => &self.metrics.verified,
            Err(
                IdentityError::Ambiguous
                | IdentityError::Invalid(InvalidToken::Invalid | InvalidToken::Foreign),
            ) => &self.metrics.invalid,
            Err(IdentityError::Invalid(InvalidToken::Expired)) => &self.metrics.expired,
            Err(IdentityError::Invalid(InvalidToken::Rejected)) => &self.metrics.rejected,
            Err(IdentityError::TooManyFailures { .. }) => &self.metrics.limited,
            Err(IdentityError::Unavailable) => &self.metrics.unavailable,
        }
        .inc();
        result
    }

    async fn check_uncounted(
        &self,
        UncheckedToken { token, hash }: UncheckedToken<'_>,
        client: ClientKey,
    ) -> Result<SharedIdentity, IdentityError> {
        let now = Instant::now();
        let retry_after = self.failures.retry_after(client, now);
        if !retry_after.is_zero() {
            return Err(IdentityError::TooManyFailures { retry_after });
        }
        let result = match self.screen(token) {
            Ok(expires_at) => {
                let check = self.verify_unless_remembered(token, hash, expires_at);
                self.gates.pass(hash, std::time::Instant::now, check).await
            }
            Err(invalid) => Err(invalid.into()),
        };
        if let Err(IdentityError::Invalid(_)) = result {
            self.failures.record(client, now);
        }
        result
    }

    /// Rejects a token that the gateway can tell is invalid. Returns its expiry.
    fn screen(&self, token: &str) -> Result<Option<i64>, InvalidToken> {
        let now = unix_seconds(SystemTime::now());
        let Some(keys) = &self.keys else {
            return Ok(token::screen(token, None, now)?.expires_at);
        };
        let expected = Expected {
            keys: &keys.current(),
            issuer: &self.settings.issuer,
            audience: self.settings.audience.as_deref(),
        };
        let screened = token::screen(token, Some(expected), now).inspect_err(|error| {
            if *error == InvalidToken::Foreign && self.foreign_logged.begin(Instant::now()) {
                tracing::warn!(
                    issuer = expected.issuer,
                    audience = expected.audience,
                    "access token with a valid signature is rejected: its typ, iss, aud or times do not fit premier.identity"
                );
            }
        })?;
        if screened.signature == Signature::UnknownKey {
            keys.request_refresh();
        }
        Ok(screened.expires_at)
    }

    /// Checks a token at the verify endpoint, unless another request has had it remembered meanwhile.
    async fn verify_unless_remembered(
        &self,
        token: &str,
        hash: TokenHash,
        expires_at: Option<i64>,
    ) -> Result<SharedIdentity, IdentityError> {
        let version = match self.verified.as_ref().map(|verified| verified.get(&hash)) {
            Some(Ok(identity)) => return Ok(identity),
            Some(Err(version)) => Some(version),
            None => None,
        };
        let identity = self.verify(token).await?;
        if let (Some(verified), Some(version)) = (&self.verified, version) {
            let expires_in = expires_at.map_or(Duration::MAX, time_until);
            verified.remember(hash, SharedIdentity::clone(&identity), expires_in, version);
        }
        Ok(identity)
    }

    async fn verify(&self, token: &str) -> Result<SharedIdentity, IdentityError> {
        let authorization = [b"Bearer ", token.as_bytes()].concat();
        let headers: [(&str, &[u8]); 1] = [("authorization", &authorization)];
        let response = self.verify.get(&headers, CHECK_TIMEOUT).await;
        let response = response.map_err(|error| self.unavailable(&error))?;
        match response.status {
            StatusCode::OK => identity_of(&response).map_or_else(
                || Err(self.unavailable(&"the response has no valid identity headers")),
                |identity| Ok(SharedIdentity::new(identity)),
            ),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(InvalidToken::Rejected.into()),
            status => Err(self.unavailable(&format!("the response has status {status}"))),
        }
    }

    fn unavailable(&self, error: &dyn std::fmt::Display) -> IdentityError {
        if self.failure_logged.begin(Instant::now()) {
            let url = &self.settings.verify;
            tracing::warn!(%url, %error, "access tokens cannot be verified: rejected with 503");
        }
        IdentityError::Unavailable
    }
}

/// Returns the time until a Unix time, zero if it has passed.
fn time_until(unix_seconds: i64) -> Duration {
    let since_epoch = Duration::from_secs(u64::try_from(unix_seconds).unwrap_or_default());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since_epoch.saturating_sub(now.unwrap_or_default())
}

/// Returns the identity in a response of the verify endpoint.
fn identity_of(response: &OriginResponse) -> Option<Identity> {
    let header = |name: HeaderName| {
        let mut values = response.headers.get_all(name).iter();
        let value = values.next()?.to_str().ok()?;
        values.next().is_none().then_some(value)
    };
    let (user, login, session) = (header(USER_ID)?, header(USER_LOGIN)?, header(SESSION_ID)?);
    let owner = Owner {
        user: UserId(user.parse().ok()?),
        session: SessionId::parse(session)?,
    };
    let mut header_lines = Vec::with_capacity(128);
    for (name, value) in [(USER_ID, user), (USER_LOGIN, login), (SESSION_ID, session)] {
        put_header(
            &mut header_lines,
            name.as_str().as_bytes(),
            value.as_bytes(),
        );
    }
    Some(Identity {
        owner,
        header_lines: header_lines.into(),
    })
}
