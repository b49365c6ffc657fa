//! Audit log: security events, under `target: "audit"` whatever the log level is.
//!
//! An event contains the account, the action and the client, and never a password or a token. A login
//! without an account is recorded as a pseudonym, since it may be a password. Events
//! that an operator causes with `auth-api user …` go to the standard error of that command, and to the
//! file if there is one; likewise those of `auth-api client …`.
//!
//! Without a file of its own (`AUDIT_LOG`) the audit log is a part of the log on standard output.

mod file;
mod record;
mod writer;

use std::io;
use std::path::PathBuf;

use chrono::Utc;
use parking_lot::Mutex;

pub(crate) use file::Rotation;
pub(crate) use writer::{AuditFileState, AuditMode, AuditUnavailable};

use file::{AuditFile, Durability};
use record::AuditRecord;
use writer::AuditWriter;

use crate::domain::login::{Login, PresentedLogin};
use crate::domain::login_pseudonym::PseudonymKey;
use crate::domain::oauth_client::OAuthClient;
use crate::domain::secret_keys::SecretKeys;
use crate::domain::user::{Account, UserId};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::request_info::RequestInfo;

/// Security event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuditEvent {
    Registered,
    LoggedIn,
    LoginFailed,
    LockedOut,
    LoggedOut,
    AllSessionsEnded,
    SessionEnded,
    RefreshTokenReused,
    /// The owner changed the password.
    PasswordChanged,
    Deleted,
    /// An operator set the password.
    PasswordSet,
    Disabled,
    Enabled,
    /// An operator lifted the lock of a login.
    Unlocked,
    OAuthClientCreated,
    OAuthClientDeleted,
    OAuthClientAuthenticationFailed,
    OAuthClientLockedOut,
    /// An OAuth client ended the session of a token.
    TokenRevoked,
}

/// Account, login or OAuth client that an event concerns.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Subject<'s> {
    /// No single account, a login that no account can have, or an unknown client, whose id may be a secret in the
    /// wrong field.
    None,
    Account(UserId, &'s Login),
    /// Account whose login was not read.
    User(UserId),
    /// Login without an account. It may be a password in the wrong field, so the log has its pseudonym.
    UnknownLogin(&'s PresentedLogin),
    OAuthClient(&'s OAuthClient),
    /// Account whose session a client has ended.
    UserOfToken(UserId, &'s OAuthClient),
}

impl<'s> Subject<'s> {
    /// Returns the subject of an attempt to log in as `login`.
    pub(crate) fn login(login: &'s PresentedLogin, account: Option<&'s Account>) -> Self {
        account.map_or(Self::UnknownLogin(login), |account| {
            Self::Account(account.id, &account.login)
        })
    }

    fn user(self) -> Option<i64> {
        match self {
            Self::Account(user, _) | Self::User(user) | Self::UserOfToken(user, _) => Some(user.0),
            Self::None | Self::UnknownLogin(_) | Self::OAuthClient(_) => None,
        }
    }

    fn known_login(self) -> Option<&'s str> {
        match self {
            Self::Account(_, login) => Some(login.as_str()),
            _ => None,
        }
    }

    fn oauth_client(self) -> Option<&'s OAuthClient> {
        match self {
            Self::OAuthClient(client) | Self::UserOfToken(_, client) => Some(client),
            _ => None,
        }
    }
}

impl From<UserId> for Subject<'_> {
    fn from(user: UserId) -> Self {
        Self::User(user)
    }
}

/// Destination of the audit log other than the log on standard output.
#[derive(Debug, Clone)]
pub(crate) struct AuditFileSettings {
    pub(crate) path: PathBuf,
    pub(crate) rotation: Rotation,
    pub(crate) mode: AuditMode,
}

/// Audit log of a replica.
#[derive(Debug)]
pub(crate) struct AuditLog {
    unknown_logins: PseudonymKey,
    /// `None` if the audit log is a part of the log on standard output.
    file: Option<AuditWriter>,
}

impl AuditLog {
    /// Opens the file of the audit log, if it has one.
    ///
    /// # Errors
    /// Returns an error if the file cannot be opened.
    pub(crate) fn start(
        keys: &SecretKeys,
        settings: Option<AuditFileSettings>,
        metrics: &Metrics,
    ) -> io::Result<Self> {
        let file = match settings {
            Some(settings) => {
                let file = AuditFile::open(settings.path, settings.rotation)?;
                let (mode, supervisor) = (settings.mode, &metrics.supervisor);
                let writer = AuditWriter::start(file, mode, metrics.audit.clone(), supervisor)?;
                Some(writer)
            }
            None => None,
        };
        Ok(Self {
            unknown_logins: PseudonymKey::new(keys),
            file,
        })
    }

    /// Returns whether actions that have to be recorded cannot be, so that they must not begin.
    pub(crate) fn is_refusing(&self) -> bool {
        self.file.as_ref().is_some_and(AuditWriter::is_refusing)
    }

    /// Returns the state of the file that actions have to be recorded in, if they have to.
    pub(crate) fn required_file(&self) -> Option<AuditFileState> {
        self.file.as_ref()?.required()
    }

    /// Records an event that a client's request caused.
    ///
    /// # Errors
    /// Returns an error if the record is required and not on disk. The action has been carried out, unless the
    /// caller takes it back.
    pub(crate) async fn record<'s>(
        &self,
        event: AuditEvent,
        subject: impl Into<Subject<'s>>,
        request: &RequestInfo,
    ) -> Result<(), AuditUnavailable> {
        let subject = subject.into();
        let unknown_login = match subject {
            Subject::UnknownLogin(login) => {
                // All spellings of a login have one pseudonym.
                let login = Login::from_stored(login.normalized());
                Some(self.unknown_logins.pseudonym(&login))
            }
            _ => None,
        };
        let record = AuditRecord {
            timestamp: Utc::now(),
            event: event.name(),
            user: subject.user(),
            login: subject.known_login().map(str::to_owned),
            unknown_login,
            oauth_client: subject.oauth_client().map(|client| client.id.to_string()),
            oauth_client_name: oauth_client_name(subject),
            client: Some(request.client.address.clone()),
            user_agent: Some(request.client.user_agent.clone()),
            request_id: Some(request.request_id.clone()),
            operator: None,
        };
        if let Some(file) = &self.file {
            return file.record(record).await;
        }
        record.log();
        Ok(())
    }
}

/// Audit log of the commands of an operator: on standard error, and in the file if there is one.
#[derive(Debug)]
pub(crate) struct OperatorAuditLog(Option<Mutex<AuditFile>>);

impl OperatorAuditLog {
    /// Opens the file of the audit log, if it has one.
    ///
    /// # Errors
    /// Returns an error if the file cannot be opened.
    pub(crate) fn open(settings: Option<AuditFileSettings>) -> io::Result<Self> {
        let file = settings.map(|settings| AuditFile::open(settings.path, settings.rotation));
        Ok(Self(file.transpose()?.map(Mutex::new)))
    }

    /// Records an event that an operator caused. The operator is identified by the process's user id.
    ///
    /// # Errors
    /// Returns an error if the record is not in the file. The action has been carried out.
    pub(crate) fn record(&self, event: AuditEvent, subject: Subject<'_>) -> io::Result<()> {
        let record = AuditRecord {
            timestamp: Utc::now(),
            event: event.name(),
            user: subject.user(),
            login: subject.known_login().map(str::to_owned),
            unknown_login: None,
            oauth_client: subject.oauth_client().map(|client| client.id.to_string()),
            oauth_client_name: oauth_client_name(subject),
            client: None,
            user_agent: None,
            request_id: None,
            operator: Some(rustix::process::getuid().as_raw()),
        };
        record.log();
        let Some(file) = &self.0 else {
            return Ok(());
        };
        let mut line = Vec::new();
        record.append_to(&mut line);
        file.lock().append(&line, Durability::Synced)
    }
}

fn oauth_client_name(subject: Subject<'_>) -> Option<String> {
    let client = subject.oauth_client()?;
    Some(client.name.as_str().to_owned())
}

impl AuditEvent {
    fn name(self) -> &'static str {
        match self {
            Self::Registered => "register",
            Self::LoggedIn => "login",
            Self::LoginFailed => "login_failed",
            Self::LockedOut => "locked_out",
            Self::LoggedOut => "logout",
            Self::AllSessionsEnded => "logout_all",
            Self::SessionEnded => "session_ended",
            Self::RefreshTokenReused => "refresh_token_reused",
            Self::PasswordChanged => "password_changed",
            Self::Deleted => "delete",
            Self::PasswordSet => "password_set",
            Self::Disabled => "disabled",
            Self::Enabled => "enabled",
            Self::Unlocked => "unlocked",
            Self::OAuthClientCreated => "oauth_client_created",
            Self::OAuthClientDeleted => "oauth_client_deleted",
            Self::OAuthClientAuthenticationFailed => "oauth_client_authentication_failed",
            Self::OAuthClientLockedOut => "oauth_client_locked_out",
            Self::TokenRevoked => "token_revoked",
        }
    }
}
