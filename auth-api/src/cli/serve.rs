//! `auth-api serve`: assembles the application state and runs the server.

use ::logging::AccessLog;
use anyhow::{Context, Result};

use super::stores::{self, Stores};
use crate::config::{self, Config, Environment};
use crate::costliest_hash;
use crate::domain::access_token::AccessTokenKeys;
use crate::domain::refresh_token::RefreshTokenKeys;
use crate::hashing::Hasher;
use crate::lifecycle::Lifecycle;
use crate::readiness::Readiness;
use crate::server;
use crate::state::App;
use crate::telemetry::audit::AuditLog;
use crate::telemetry::logging;
use crate::telemetry::metrics::Metrics;

pub(super) async fn run(environment: &Environment) -> Result<()> {
    let config = Config::read(environment)?;
    let metrics = Metrics::new();
    let (log_writer, _flush_guard) = logging::start(config.logging, &metrics);
    let audit = AuditLog::start(&config.secret_keys, config.audit, &metrics)
        .context("AUDIT_LOG: opening the file")?;
    if config.hashing.cost < config::MIN_SAFE_BCRYPT_COST {
        tracing::warn!(
            cost = config.hashing.cost,
            "BCRYPT_COST is too low for production"
        );
    }
    let Stores {
        users,
        sessions,
        throttle,
        oauth_clients,
    } = stores::open(&config.store, config.migrate, &metrics).await?;
    let hasher = Hasher::start(config.hashing, metrics.hashing.clone(), &metrics.supervisor)
        .context("starting the hashing threads")?;
    costliest_hash::watch(&users, &hasher, &metrics.supervisor).await;
    let readiness = Readiness::start(&users, &sessions, audit.required_file(), &metrics);
    let app = App {
        users,
        sessions,
        throttle,
        oauth_clients,
        hasher,
        access_tokens: AccessTokenKeys::new(
            &config.secret_keys,
            config.signing_keys,
            config.access_tokens,
        ),
        refresh_tokens: RefreshTokenKeys::new(&config.secret_keys),
        session_policy: config.session_policy,
        metrics,
        lifecycle: Lifecycle::default(),
        readiness,
        audit,
        access_log: AccessLog::new(config.logging, &log_writer),
    };
    server::run(config.listen, config.internal_listen, app.into()).await
}
