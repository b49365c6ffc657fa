//! Application state that all endpoints share.

use std::ops::Deref;
use std::sync::Arc;

use logging::AccessLog;

use crate::domain::access_token::AccessTokenKeys;
use crate::domain::refresh_token::RefreshTokenKeys;
use crate::domain::session::SessionPolicy;
use crate::hashing::Hasher;
use crate::lifecycle::Lifecycle;
use crate::oauth_clients::OAuthClients;
use crate::readiness::Readiness;
use crate::sessions::Sessions;
use crate::telemetry::audit::AuditLog;
use crate::telemetry::metrics::Metrics;
use crate::throttle::Throttle;
use crate::users::Users;

/// Shared state. Cheap to clone, as the router does several times per request.
#[derive(Clone)]
pub(crate) struct AppState(Arc<App>);

/// Parts of the state.
pub(crate) struct App {
    pub(crate) users: Users,
    pub(crate) sessions: Sessions,
    pub(crate) throttle: Throttle,
    pub(crate) oauth_clients: OAuthClients,
    pub(crate) hasher: Hasher,
    pub(crate) access_tokens: AccessTokenKeys,
    pub(crate) refresh_tokens: RefreshTokenKeys,
    pub(crate) session_policy: SessionPolicy,
    pub(crate) metrics: Metrics,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) readiness: Readiness,
    pub(crate) audit: AuditLog,
    pub(crate) access_log: AccessLog,
}

impl From<App> for AppState {
    fn from(app: App) -> Self {
        Self(Arc::new(app))
    }
}

impl Deref for AppState {
    type Target = App;

    fn deref(&self) -> &App {
        &self.0
    }
}
