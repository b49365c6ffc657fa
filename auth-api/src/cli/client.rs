//! `auth-api client …`: registration of services that may introspect and revoke tokens.

use anyhow::{Context, Result, anyhow};
use chrono::Utc;
use clap::Subcommand;
use logging::LogSettings;
use tracing::Level;

use super::output::{NOT_AUDITED, escape, format_time, print};
use super::stores;
use crate::config::{self, Environment};
use crate::domain::oauth_client::{
    ListedOAuthClient, NewOAuthClient, OAuthClient, OAuthClientId, OAuthClientName,
    OAuthClientSecret,
};
use crate::oauth_clients::OAuthClients;
use crate::telemetry::audit::{AuditEvent, OperatorAuditLog, Subject};
use crate::telemetry::logging::start_on_standard_error;
use crate::telemetry::metrics::Metrics;

#[derive(Debug, Clone, Subcommand)]
pub(super) enum ClientCommand {
    /// List all clients, one per line: id, name, time of creation
    List,
    /// Register a client and print its id and its secret, which is shown this once
    Create { name: String },
    /// Delete a client, which is refused from then on
    Delete { id: String },
}

/// Connects to the store and runs `command`.
pub(super) async fn run(environment: &Environment, command: ClientCommand) -> Result<()> {
    start_on_standard_error(LogSettings {
        level: Level::WARN,
        ..config::logging(environment)?
    });
    let store = config::store(environment)?;
    // An operator may register the first client before the first start of the service.
    if !matches!(command, ClientCommand::Create { .. }) {
        stores::require_existing(&store)?;
    }
    let audit = config::audit(environment)?;
    let audit = OperatorAuditLog::open(audit).context("AUDIT_LOG: opening the file")?;
    let clients = stores::open_oauth_clients(&store, &Metrics::new()).await?;
    match command {
        ClientCommand::List => list(&clients).await,
        ClientCommand::Create { name } => create(&clients, &audit, &name).await,
        ClientCommand::Delete { id } => delete(&clients, &audit, &id).await,
    }
}

async fn list(clients: &OAuthClients) -> Result<()> {
    for ListedOAuthClient { client, created_at } in clients.list().await? {
        print(&format!(
            "{}  {}  created {}",
            client.id,
            escape(client.name.as_str()),
            format_time(created_at)
        ))?;
    }
    Ok(())
}

async fn create(clients: &OAuthClients, audit: &OperatorAuditLog, name: &str) -> Result<()> {
    let client = OAuthClient {
        id: OAuthClientId::random(),
        name: OAuthClientName::new(name).map_err(|reason| anyhow!("{reason}"))?,
    };
    let secret = OAuthClientSecret::random();
    let new = NewOAuthClient {
        client: client.clone(),
        secret_hash: secret.hash(),
        created_at: Utc::now(),
    };
    clients.add(&new).await?;
    // Before the record, since the secret is lost if that fails first.
    print(&format!(
        "client_id: {}\nclient_secret: {}",
        client.id,
        secret.expose()
    ))?;
    let subject = Subject::OAuthClient(&client);
    audit
        .record(AuditEvent::OAuthClientCreated, subject)
        .context(NOT_AUDITED)
}

async fn delete(clients: &OAuthClients, audit: &OperatorAuditLog, id: &str) -> Result<()> {
    let client = match OAuthClientId::parse(id) {
        Some(id) => clients.delete(id).await?,
        None => None,
    };
    let client = client.context("no client has that id")?;
    let subject = Subject::OAuthClient(&client);
    audit
        .record(AuditEvent::OAuthClientDeleted, subject)
        .context(NOT_AUDITED)?;
    print("deleted")
}
