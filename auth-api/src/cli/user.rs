//! `auth-api user …`: administration of accounts by an operator.
//!
//! Passwords are read from standard input, because every user of the machine can see the arguments
//! of a process. A terminal does not show them.

use anyhow::{Context, Result, anyhow, bail};
use chrono::Utc;
use clap::{Args, Subcommand};
use logging::LogSettings;
use tracing::Level;

use super::output::{NOT_AUDITED, escape, format_time, print, unescape};
use super::password_prompt;
use super::stores::{self, Stores};
use crate::config::{self, Environment, MigrateMode};
use crate::domain::login::{Login, PresentedLogin};
use crate::domain::password::NewPassword;
use crate::domain::session::{ActiveSession, SessionPolicy};
use crate::domain::user::{Account, AccountStatus, AccountSummary, UserId};
use crate::hashing::Hasher;
use crate::sessions::Sessions;
use crate::telemetry::audit::{AuditEvent, OperatorAuditLog, Subject};
use crate::telemetry::logging::start_on_standard_error;
use crate::telemetry::metrics::Metrics;
use crate::throttle::{FAILURE_WINDOW, LockedOut, Throttle, ThrottleScope};
use crate::users::Users;

#[derive(Debug, Clone, Subcommand)]
pub(super) enum UserCommand {
    /// List all accounts, one per line: id, login, time of creation, last login, status
    List,
    /// Show an account, its active sessions, and whether its login is locked
    Show(Selection),
    /// Create an account with the password on the first line of standard input, or asked for on a terminal
    Create { login: String },
    /// Disable an account and end its sessions
    Disable(Selection),
    /// Enable a disabled account
    Enable(Selection),
    /// Lift the lock of a login after too many failed logins
    Unlock(Selection),
    /// Set the password to the first line of standard input, or asked for on a terminal, lift the lock and
    /// end all sessions
    SetPassword(Selection),
    /// Delete an account and end its sessions
    Delete(Selection),
    /// End all sessions of an account
    EndSessions(Selection),
    /// End all sessions of all accounts, as after a store was restored from a backup
    EndAllSessions,
}

/// Account that a command concerns: exactly one of both.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Selection {
    /// Login of the account, in any Unicode normalization form, or as `auth-api user list` prints it
    login: Option<String>,
    /// Id of the account, in place of its login
    #[arg(long, allow_negative_numbers = true)]
    id: Option<i64>,
}

/// Connects to the stores and runs `command`.
pub(super) async fn run(environment: &Environment, command: UserCommand) -> Result<()> {
    start_on_standard_error(LogSettings {
        level: Level::WARN,
        ..config::logging(environment)?
    });
    let store = config::store(environment)?;
    // An operator may create the first account before the first start of the service.
    if !matches!(command, UserCommand::Create { .. }) {
        stores::require_existing(&store)?;
    }
    let audit = config::audit(environment)?;
    let audit = OperatorAuditLog::open(audit).context("AUDIT_LOG: opening the file")?;
    let metrics = Metrics::new();
    let Stores {
        users,
        sessions,
        throttle,
        ..
    } = stores::open(&store, MigrateMode::ByCommand, &metrics).await?;
    let administration = Administration {
        users,
        sessions,
        policy: config::session_policy(environment)?,
        audit,
        throttle,
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
    throttle: Throttle,
    hasher: Hasher,
}

impl Administration {
    /// Runs `command` and prints its result.
    async fn run(&self, command: UserCommand) -> Result<()> {
        match command {
            UserCommand::List => self.list().await,
            UserCommand::Show(selection) => self.show(&selection).await,
            UserCommand::Create { login } => self.create(&login).await,
            UserCommand::Disable(selection) => {
                self.set_status(&selection, AccountStatus::Disabled).await
            }
            UserCommand::Enable(selection) => {
                self.set_status(&selection, AccountStatus::Active).await
            }
            UserCommand::Unlock(selection) => self.unlock(&selection).await,
            UserCommand::SetPassword(selection) => self.set_password(&selection).await,
            UserCommand::Delete(selection) => self.delete(&selection).await,
            UserCommand::EndSessions(selection) => {
                let account = self.find(&selection).await?;
                let accounts = (account.id, account.id);
                self.users.end_sessions(accounts, Utc::now()).await?;
                let deleted = self.delete_sessions(&account).await;
                self.report_deleted_sessions(&account, deleted)
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

    async fn show(&self, selection: &Selection) -> Result<()> {
        let Account { id, login, .. } = self.find(selection).await?;
        let account = self.users.summary(id).await?;
        let account = account.context("the account was deleted concurrently")?;
        print(&account_line(&account))?;
        let cutoff = account.standing.cutoff;
        let sessions = self.sessions.list(id, cutoff, self.policy).await?;
        if let Err(LockedOut { retry_after }) = self.throttle.check(&lock_of(&login)).await? {
            print(&format!(
                "  login locked after too many failures, for {} more seconds: auth-api user unlock --id {}",
                retry_after.as_secs_f64().ceil(),
                id.0
            ))?;
        }
        for session in sessions {
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

    async fn set_status(&self, selection: &Selection, status: AccountStatus) -> Result<()> {
        let account = self.find(selection).await?;
        self.users
            .set_status(account.id, status, Utc::now())
            .await?;
        match status {
            AccountStatus::Active => {
                self.record(AuditEvent::Enabled, account.id, &account.login)?;
                print("enabled")
            }
            AccountStatus::Disabled => {
                let deleted = self.delete_sessions(&account).await;
                self.record(AuditEvent::Disabled, account.id, &account.login)?;
                print("disabled")?;
                self.report_deleted_sessions(&account, deleted)
            }
        }
    }

    async fn unlock(&self, selection: &Selection) -> Result<()> {
        let account = self.find(selection).await?;
        self.throttle.clear(&lock_of(&account.login)).await?;
        self.record(AuditEvent::Unlocked, account.id, &account.login)?;
        print("unlocked")
    }

    async fn set_password(&self, selection: &Selection) -> Result<()> {
        let account = self.find(selection).await?;
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
        let deleted = self.delete_sessions(&account).await;
        self.record(AuditEvent::PasswordSet, account.id, &account.login)?;
        print("password set")?;
        if self.throttle.clear(&lock_of(&account.login)).await.is_err() {
            print(&format!(
                "the store of failed logins is unavailable: if the login is locked, it stays so for up to {} minutes",
                FAILURE_WINDOW.as_secs() / 60
            ))?;
        }
        self.report_deleted_sessions(&account, deleted)
    }

    /// Ends the sessions first: if their store is unavailable, nothing has been changed, whereas
    /// without the account they could no longer be ended by login. Ends them again after the
    /// deletion, for a login in between.
    async fn delete(&self, selection: &Selection) -> Result<()> {
        let account = self.find(selection).await?;
        let ended = self.sessions.end_all(account.id).await?;
        self.report_ended_sessions(&account, ended)?;
        self.users.delete(account.id).await?;
        let deleted = self.sessions.end_all(account.id).await;
        self.record(AuditEvent::Deleted, account.id, &account.login)?;
        print("deleted")?;
        deleted?;
        Ok(())
    }

    /// Deletes the sessions of an account that has ended them already, so that gateways forget them. Precedes the audit
    /// log and the output, which may fail. Without the store, for which it returns `None`, auth-api refuses them all the same.
    async fn delete_sessions(&self, account: &Account) -> Option<u64> {
        self.sessions.end_all(account.id).await.ok()
    }

    fn report_deleted_sessions(&self, account: &Account, deleted: Option<u64>) -> Result<()> {
        let Some(ended) = deleted else {
            self.record(AuditEvent::AllSessionsEnded, account.id, &account.login)?;
            return print(
                "sessions ended; the session store is unavailable and still contains them: gateways that \
                 reach it may accept tokens for another 30 seconds",
            );
        };
        self.report_ended_sessions(account, ended)
    }

    async fn end_all_sessions(&self) -> Result<()> {
        let mut after = UserId(i64::MIN);
        loop {
            let page = self.users.page(after, PAGE_SIZE).await?;
            let (Some(first), Some(last)) = (page.first(), page.last()) else {
                let invalidated = self.sessions.invalidate_all().await;
                self.audit
                    .record(AuditEvent::AllSessionsEnded, Subject::None)
                    .context(NOT_AUDITED)?;
                return match invalidated {
                    Ok(()) => print("sessions of all accounts ended"),
                    Err(_) => print(
                        "sessions of all accounts ended; the session store is unavailable: gateways that \
                         reach it may accept tokens for another 30 seconds",
                    ),
                };
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

    async fn find(&self, selection: &Selection) -> Result<Account> {
        match (selection.id, &selection.login) {
            (Some(id), _) => {
                let account = self.users.find(UserId(id)).await?;
                account.context("no account has that id")
            }
            (None, Some(login)) => self.find_by_login(login).await,
            (None, None) => bail!("name the account by its login or by --id"),
        }
    }

    /// Finds the account whose login is printed like this, or with this login.
    async fn find_by_login(&self, text: &str) -> Result<Account> {
        let unescaped = unescape(text);
        for text in [unescaped.as_deref(), Some(text)].into_iter().flatten() {
            if let Some(login) = PresentedLogin::new(text)
                && let Some(account) = self.users.find_by_login(&login).await?
            {
                return Ok(account);
            }
        }
        bail!("no account has that login")
    }
}

/// Returns the scope whose lock stops logins to an account.
fn lock_of(login: &Login) -> ThrottleScope {
    ThrottleScope::Login(login.into())
}

async fn read_password(login: &Login) -> Result<NewPassword> {
    let text = password_prompt::read(&escape(login.as_str())).await?;
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
        escape(&profile.login),
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
        escape(&session.client.address),
        escape(&session.client.user_agent),
    )
}
