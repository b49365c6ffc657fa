//! `auth-api user …`: what an operator does with accounts. Passwords are read from standard input,
//! since arguments are seen by everybody on the machine.

use std::io::{BufRead, Write};

use anyhow::{Context, Result, anyhow, bail};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::Subcommand;

use crate::audit::{self, Event, Subject};
use crate::domain::login::Login;
use crate::domain::password::NewPassword;
use crate::domain::user::{Account, Listed, Standing, UserId};
use crate::hashing::Hasher;
use crate::sessions::Sessions;
use crate::users::{NotAdded, Users};

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Task {
    /// Every account, a line each: number, login, made, last login, standing.
    List,
    /// One account and where it is logged in.
    Show { login: String },
    /// Make an account; its password is the first line of standard input.
    Create { login: String },
    /// Let nobody use an account, from now on; its sessions end.
    Disable { login: String },
    /// Let an account be used again.
    Enable { login: String },
    /// Give an account the password that is the first line of standard input; its sessions end.
    SetPassword { login: String },
    /// Delete an account and end its sessions.
    Delete { login: String },
    /// End every session of an account.
    EndSessions { login: String },
}

/// Where accounts are, and what makes hashes for them.
#[derive(Debug)]
pub(crate) struct Accounts {
    pub(crate) users: Users,
    pub(crate) sessions: Sessions,
    pub(crate) hasher: Hasher,
}

impl Accounts {
    /// Does a task and says what was done.
    pub(crate) async fn run(&self, task: Task) -> Result<()> {
        match task {
            Task::List => self.list().await,
            Task::Show { login } => self.show(&login).await,
            Task::Create { login } => self.create(&login).await,
            Task::Disable { login } => self.stand(&login, Standing::Disabled).await,
            Task::Enable { login } => self.stand(&login, Standing::Active).await,
            Task::SetPassword { login } => self.set_password(&login).await,
            Task::Delete { login } => self.delete(&login).await,
            Task::EndSessions { login } => {
                let account = self.find(&login).await?;
                self.end_sessions(&account).await
            }
        }
    }

    async fn list(&self) -> Result<()> {
        const PAGE: u32 = 1000;
        let mut after = UserId(i64::MIN);
        loop {
            let page = self.users.page(after, PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = last.profile.id;
            for account in &page {
                say(&line(account))?;
            }
        }
    }

    async fn show(&self, login: &str) -> Result<()> {
        let id = self.find(login).await?.id;
        let just_before = UserId(id.0 - 1);
        let account = self.users.page(just_before, 1).await?.pop();
        say(&line(
            &account.context("the account was deleted meanwhile")?,
        ))?;
        for session in self.sessions.list(id).await? {
            say(&format!(
                "  session {}  since {}  used {}  from {}  {}",
                session.id,
                time(Some(session.created_at)),
                time(Some(session.last_used)),
                session.origin.address,
                session.origin.user_agent.escape_debug(),
            ))?;
        }
        Ok(())
    }

    async fn create(&self, login: &str) -> Result<()> {
        let login = Login::new(login).map_err(|why| anyhow!("{why}"))?;
        let hash = self.hasher.hash(&password(&login)?).await?;
        match self.users.add(&login, &hash).await {
            Ok(id) => {
                record(Event::Registered, id, &login);
                say(&format!("made account {}", id.0))
            }
            Err(NotAdded::Taken) => bail!("the login is taken"),
            Err(NotAdded::Unavailable(store)) => Err(store.into()),
        }
    }

    async fn stand(&self, login: &str, standing: Standing) -> Result<()> {
        let account = self.find(login).await?;
        self.users.set_standing(account.id, standing).await?;
        match standing {
            Standing::Active => {
                record(Event::Enabled, account.id, &account.login);
                say("enabled")
            }
            Standing::Disabled => {
                record(Event::Disabled, account.id, &account.login);
                say("disabled")?;
                self.end_sessions(&account).await
            }
        }
    }

    async fn set_password(&self, login: &str) -> Result<()> {
        let account = self.find(login).await?;
        let hash = self.hasher.hash(&password(&account.login)?).await?;
        if !self
            .users
            .set_hash(account.id, &account.hash, &hash)
            .await?
        {
            bail!("somebody else changed the password meanwhile: nothing was done");
        }
        record(Event::PasswordSet, account.id, &account.login);
        say("password set")?;
        self.end_sessions(&account).await
    }

    /// First the sessions: if their store fails there, nothing has happened yet, and nobody could end
    /// them by the account's name any more. Then once more for a login that came between.
    async fn delete(&self, login: &str) -> Result<()> {
        let account = self.find(login).await?;
        self.end_sessions(&account).await?;
        self.users.delete(account.id).await?;
        record(Event::Deleted, account.id, &account.login);
        say("deleted")?;
        self.sessions.end_all(account.id).await?;
        Ok(())
    }

    async fn end_sessions(&self, account: &Account) -> Result<()> {
        let ended = self.sessions.end_all(account.id).await?;
        record(Event::AllSessionsEnded, account.id, &account.login);
        say(&format!("sessions ended: {ended}"))
    }

    async fn find(&self, login: &str) -> Result<Account> {
        let login = Login::existing(login).context(UNKNOWN)?;
        self.users.account(&login).await?.context(UNKNOWN)
    }
}

const UNKNOWN: &str = "no account has that login";

fn record(event: Event, user: UserId, login: &Login) {
    audit::record_operator(event, Subject::account(user, login));
}

fn password(login: &Login) -> Result<NewPassword> {
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .context("reading the password from standard input")?;
    let text = line.trim_end_matches(['\r', '\n']);
    NewPassword::new(text)
        .and_then(|password| password.for_login(login))
        .map_err(|why| anyhow!("{why}"))
}

fn line(account: &Listed) -> String {
    let profile = &account.profile;
    let standing = match account.standing {
        Standing::Active => "active",
        Standing::Disabled => "disabled",
    };
    format!(
        "{}  {}  made {}  last login {}  {standing}",
        profile.id.0,
        without_controls(&profile.login),
        time(profile.created_at),
        time(profile.last_login),
    )
}

/// The Python service let logins in that move a terminal's cursor, or look like further lines.
fn without_controls(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

fn time(time: Option<DateTime<Utc>>) -> String {
    time.map_or_else(
        || "never".to_owned(),
        |time| time.to_rfc3339_opts(SecondsFormat::Secs, true),
    )
}

fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_one_line_and_moves_no_cursor() {
        let shown = without_controls("O'Brien \u{1b}[2J\n999  admin\u{9b}1m");
        assert_eq!(shown, "O'Brien \\u{1b}[2J\\n999  admin\\u{9b}1m");
    }
}
