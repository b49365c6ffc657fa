//! Authentication of OAuth clients (RFC 6749, section 2.3).
//!
//! An unknown id and a wrong secret are indistinguishable by response and by response time: either is one lookup, one
//! comparison in constant time, and one count.
//!
//! Failures are counted for the pair of client id and address, as those of logins are for the login. After 10 in 15
//! minutes further ones get 429. The secret is verified first and a right one always accepted: it has 256 random bits,
//! so that guesses need not be hidden behind a lock, and no one, from the same address or another, can lock a service
//! out by failing in its name. What is left to the lock is to tell a client that is configured wrongly to slow down.

use crate::domain::oauth_client::{
    OAuthClient, OAuthClientId, OAuthClientSecret, OAuthClientSecretHash,
};
use crate::state::AppState;
use crate::store::unavailable::Unavailable;
use crate::telemetry::audit::{AuditEvent, AuditUnavailable, Subject};
use crate::telemetry::request_info::RequestInfo;
use crate::throttle::{LockedOut, LoginOutcome, ThrottleScope};

/// Id and secret that a client presents.
#[derive(Debug)]
pub(crate) struct ClientCredentials {
    id: OAuthClientId,
    secret: OAuthClientSecret,
}

/// Reason a client was not authenticated.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientAuthenticationError {
    #[error("invalid client credentials")]
    Invalid,
    #[error("too many failed authentications")]
    LockedOut(LockedOut),
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error(transparent)]
    AuditUnavailable(#[from] AuditUnavailable),
}

impl ClientCredentials {
    pub(crate) fn presented(id: &str, secret: String) -> Self {
        Self {
            id: OAuthClientId::presented(id),
            secret: OAuthClientSecret::presented(secret),
        }
    }

    /// Returns the client that the credentials belong to.
    ///
    /// # Errors
    /// Returns an error if there is no such client, if its secret is another one, or if that could not be found out.
    pub(crate) async fn authenticate(
        &self,
        state: &AppState,
        request: &RequestInfo,
    ) -> Result<OAuthClient, ClientAuthenticationError> {
        let result = self.verify(state, request).await;
        let outcome = match &result {
            Ok(_) => "ok",
            Err(ClientAuthenticationError::Invalid) => "invalid",
            Err(ClientAuthenticationError::LockedOut(_)) => "locked_out",
            Err(_) => "unavailable",
        };
        let authentications = &state.metrics.oauth.client_authentications;
        authentications.with_label_values(&[outcome]).inc();
        result
    }

    async fn verify(
        &self,
        state: &AppState,
        request: &RequestInfo,
    ) -> Result<OAuthClient, ClientAuthenticationError> {
        let (client, expected) = state.oauth_clients.find(self.id).await?.unzip();
        let expected = expected.unwrap_or(OAuthClientSecretHash::OF_NO_CLIENT);
        let is_right = expected.equals(&self.secret.hash());
        match client {
            Some(client) if is_right => Ok(client),
            client => {
                let failure = record_failure(state.clone(), request.clone(), self.id, client);
                Err(state.lifecycle.complete(failure).await)
            }
        }
    }
}

/// Counts a failure and records it in the audit log. Returns the error for the client.
async fn record_failure(
    state: AppState,
    request: RequestInfo,
    id: OAuthClientId,
    client: Option<OAuthClient>,
) -> ClientAuthenticationError {
    let scope = ThrottleScope::OAuthClient {
        id,
        address: request.client.address.clone(),
    };
    let (event, error) = match state.throttle.record(&scope, LoginOutcome::Failure).await {
        Ok(Ok(())) => (
            AuditEvent::OAuthClientAuthenticationFailed,
            ClientAuthenticationError::Invalid,
        ),
        Ok(Err(locked_out)) => (
            AuditEvent::OAuthClientLockedOut,
            ClientAuthenticationError::LockedOut(locked_out),
        ),
        Err(unavailable) => return unavailable.into(),
    };
    let subject = client.as_ref().map_or(Subject::None, Subject::OAuthClient);
    match state.audit.record(event, subject, &request).await {
        Ok(()) => error,
        Err(unavailable) => unavailable.into(),
    }
}
