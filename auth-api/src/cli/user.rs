//! `auth-api user …`: administration of accounts by an operator.
//!
//! Passwords are read from standard input, because every user of the machine can see the arguments
//! of a process. A terminal does not show them.

use std::io::Write;

use anyhow::{Context, Result, anyhow, bail};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::Subcommand;
use logging::LogSettings;
use tracing::Level;

use super::{password_prompt, stores};
use crate::config::{self, Environment, MigrateMode};
use crate::domain::login::Login;
use crate::domain::password::NewPassword;
use crate::domain::session::{ActiveSession, SessionPolicy};
use crate::domain::user::{Account, AccountStatus, AccountSummary, UserId};
use crate::hashing::Hasher;
use crate::sessions::Sessions;
use crate::telemetry::audit::{AuditEvent, OperatorAuditLog, Subject};
use crate::telemetry::logging::start_on_standard_error;
use crate::telemetry::metrics::Metrics;
use crate::users::Users;

#[derive(Debug, Clone, Subcommand)]
pub(super) enum UserCommand {
    /// List all accounts, one per line: id, login, time of creation, last login, status
    List,
    /// Show an account and its active sessions
    Show { login: String },
    /// Create an account with the password on the first line of standard input, or asked for on a terminal
    Create { login: String },
    /// Disable an account and end its sessions
    Disable { login: String },
    /// Enable a disabled account
    Enable { login: String },
    /// Set the password to the first line of standard input, or asked for on a terminal, and end all sessions
    SetPassword { login: String },
    /// Delete an account and end its sessions
    Delete { login: String },
    /// End all sessions of an account
    EndSessions { login: String },
    /// End all sessions of all accounts, as after a store was restored from a backup
    EndAllSessions,
}

/// Connects to the stores and runs `command`.
pub(super) async fn run(environment: &Environment, command: UserCommand) -> Result<()> {
    start_on_standard_error(LogSettings {
        level: Level::WARN,
        ..config::logging(environment)?
    });
    let audit = config::audit(environment)?;
    let audit = OperatorAuditLog::open(audit).context("AUDIT_LOG: opening the file")?;
    let metrics = Metrics::new();
    let (users, sessions, _) = stores::open(
        &config::store(environment)?,
        MigrateMode::ByCommand,
        &metrics,
    )
    .await?;
    let administration = Administration {
        users,
        sessions,
        policy: config::session_policy(environment)?,
        audit,
        hasher: Hasher::start(
            config::hashing(environment)?,
            metrics.hashing.clone(),
            &metrics.supervisor,
        )
        .context("starting the hashing threads")?,
    };
    administration.run(command).await
}

/// Accounts per page of the list.
const PAGE_SIZE: u32 = 1000;

struct Administration {
    users: Users,
    sessions: Sessions,
    policy: SessionPolicy,
    audit: OperatorAuditLog,
    hasher: Hasher,
}

impl Administration {
    /// Runs `command` and prints its result.
    async fn run(&self, command: UserCommand) -> Result<()> {
        match command {
            UserCommand::List => self.list().await,
            UserCommand::Show { login } => self.show(&login).await,
            UserCommand::Create { login } => self.create(&login).await,
            UserCommand::Disable { login } => {
                self.set_status(&login, AccountStatus::Disabled).await
            }
            UserCommand::Enable { login } => self.set_status(&login, AccountStatus::Active).await,
            UserCommand::SetPassword { login } => self.set_password(&login).await,
            UserCommand::Delete { login } => self.delete(&login).await,
            UserCommand::EndSessions { login } => {
                let account = self.find(&login).await?;
                let accounts = (account.id, account.id);
                self.users.end_sessions(accounts, Utc::now()).await?;
                self.delete_sessions(&account).await
            }
            UserCommand::EndAllSessions => self.end_all_sessions().await,
        }
    }

    async fn list(&self) -> Result<()> {
        let mut after = UserId(i64::MIN);
        loop {
            let page = self.users.page(after, PAGE_SIZE).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = last.profile.id;
            for account in &page {
                print(&account_line(account))?;
            }
        }
    }

    async fn show(&self, login: &str) -> Result<()> {
        let id = self.find(login).await?.id;
        let previous_id = UserId(id.0 - 1);
        let account = self.users.page(previous_id, 1).await?.pop();
        let account = account.context("the account was deleted concurrently")?;
        print(&account_line(&account))?;
        let cutoff = account.standing.cutoff;
        for session in self.sessions.list(id, cutoff, self.policy).await? {
            print(&session_line(&session))?;
        }
        Ok(())
    }

    async fn create(&self, login: &str) -> Result<()> {
        let login = Login::new(login).map_err(|reason| anyhow!("{reason}"))?;
        let hash = self.hasher.hash(&read_password(&login).await?).await?;
        match self.users.add(&login, &hash).await {
            Ok(id) => {
                self.record(AuditEvent::Registered, id, &login)?;
                print(&format!("created account {}", id.0))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn set_status(&self, login: &str, status: AccountStatus) -> Result<()> {
        let account = self.find(login).await?;
        self.users
            .set_status(account.id, status, Utc::now())
            .await?;
        match status {
            AccountStatus::Active => {
                self.record(AuditEvent::Enabled, account.id, &account.login)?;
                print("enabled")
            }
            AccountStatus::Disabled => {
                self.record(AuditEvent::Disabled, account.id, &account.login)?;
                print("disabled")?;
                self.delete_sessions(&account).await
            }
        }
    }

    async fn set_password(&self, login: &str) -> Result<()> {
        let account = self.find(login).await?;
        let hash = self
            .hasher
            .hash(&read_password(&account.login).await?)
            .await?;
        let change = self
            .users
            .change_password(account.id, &account.hash, &hash, Utc::now());
        if change.await?.is_none() {
            bail!("the password was changed concurrently: nothing was changed by this command");
        }
        self.record(AuditEvent::PasswordSet, account.id, &account.login)?;
        print("password set")?;
        self.delete_sessions(&account).await
    }

    /// Ends the sessions first: if their store is unavailable, nothing has been changed, whereas
    /// without the account they could no longer be ended by login. Ends them again after the
    /// deletion, for a login in between.
    async fn delete(&self, login: &str) -> Result<()> {
        let account = self.find(login).await?;
        let ended = self.sessions.end_all(account.id).await?;
        self.report_ended_sessions(&account, ended)?;
        self.users.delete(account.id).await?;
        self.record(AuditEvent::Deleted, account.id, &account.login)?;
        print("deleted")?;
        self.sessions.end_all(account.id).await?;
        Ok(())
    }

    /// Deletes the sessions of an account that has ended them already: without their store they are
    /// refused all the same.
    async fn delete_sessions(&self, account: &Account) -> Result<()> {
        let Ok(ended) = self.sessions.end_all(account.id).await else {
            self.record(AuditEvent::AllSessionsEnded, account.id, &account.login)?;
            return print(
                "sessions ended; the session store is unavailable and still contains them",
            );
        };
        self.report_ended_sessions(account, ended)
    }

    async fn end_all_sessions(&self) -> Result<()> {
        let mut after = UserId(i64::MIN);
        loop {
            let page = self.users.page(after, PAGE_SIZE).await?;
            let (Some(first), Some(last)) = (page.first(), page.last()) else {
                self.audit
                    .record(AuditEvent::AllSessionsEnded, Subject::None)
                    .context(NOT_AUDITED)?;
                return print("sessions of all accounts ended");
            };
            after = last.profile.id;
            let accounts = (first.profile.id, last.profile.id);
            self.users.end_sessions(accounts, Utc::now()).await?;
        }
    }

    fn report_ended_sessions(&self, account: &Account, ended: u64) -> Result<()> {
        self.record(AuditEvent::AllSessionsEnded, account.id, &account.login)?;
        print(&format!("sessions ended: {ended}"))
    }

    fn record(&self, event: AuditEvent, user: UserId, login: &Login) -> Result<()> {
        let subject = Subject::Account(user, login);
        self.audit.record(event, subject).context(NOT_AUDITED)
    }

    async fn find(&self, login: &str) -> Result<Account> {
        let login = Login::for_lookup(login).context(UNKNOWN_LOGIN)?;
        self.users
            .find_by_login(&login)
            .await?
            .context(UNKNOWN_LOGIN)
    }
}

/// The action has been carried out, and its record is on standard error.
const NOT_AUDITED: &str = "done, but not recorded in the file of AUDIT_LOG";
const UNKNOWN_LOGIN: &str = "no account has that login";

async fn read_password(login: &Login) -> Result<NewPassword> {
    let text = password_prompt::read(&escape_control_characters(login.as_str())).await?;
    NewPassword::new(&text)
        .and_then(|password| password.distinct_from(login))
        .map_err(|reason| anyhow!("{reason}"))
}

fn account_line(account: &AccountSummary) -> String {
    let profile = &account.profile;
    let status = match account.standing.status {
        AccountStatus::Active => "active",
        AccountStatus::Disabled => "disabled",
    };
    format!(
        "{}  {}  created {}  last login {}  {status}",
        profile.id.0,
        escape_control_characters(&profile.login),
        format_time(profile.created_at),
        format_time(profile.last_login),
    )
}

fn session_line(session: &ActiveSession) -> String {
    format!(
        "  session {}  created {}  last used {}  from {}  {}",
        session.id,
        format_time(Some(session.created_at)),
        format_time(Some(session.last_used)),
        session.client.address,
        session.client.user_agent.escape_debug(),
    )
}

/// Escapes control characters, which the Python service accepted in logins: they could move a
/// terminal's cursor or look like further lines.
fn escape_control_characters(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    escaped
}

fn format_time(time: Option<DateTime<Utc>>) -> String {
    time.map_or_else(
        || "never".to_owned(),
        |time| time.to_rfc3339_opts(SecondsFormat::Secs, true),
    )
}

fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("writing to standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_shown_on_one_line_without_control_characters() {
        let escaped = escape_control_characters("O'Brien \u{1b}[2J\n999  admin\u{9b}1m");
        assert_eq!(escaped, "O'Brien \\u{1b}[2J\\n999  admin\\u{9b}1m");
    }
}
