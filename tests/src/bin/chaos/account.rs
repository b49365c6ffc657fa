//! Accounts: what their clients believe of them, and the operations on them.

use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use crate::history::{Action, Decision, Operation, Outcome, PasswordId, SessionId, Time};
use crate::random::Random;

/// Operations after which no client uses an account any more. Fewer than the checker accepts, since those under way
/// are completed and its passwords are verified at the end.
const MAX_OPERATIONS: usize = 100;
/// Failed logins after which no client uses an account any more: ten of them lock it.
const MAX_FAILED_LOGINS: u32 = 5;
/// Sessions that clients remember: ended ones too, whose tokens should be rejected.
const REMEMBERED_SESSIONS: usize = 8;
/// Passwords that the account may have, as far as the clients know.
const CANDIDATES: usize = 4;

/// An account with its history.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) login: String,
    pub(crate) operations: Mutex<Vec<Operation>>,
    beliefs: Mutex<Beliefs>,
    /// Time for which it is used.
    pub(crate) lifetime: Duration,
    /// Time at which the last operation on it had ended, before its verification.
    pub(crate) retired: OnceLock<Time>,
}

/// Tokens of a session.
#[derive(Debug, Clone)]
pub(crate) struct Tokens {
    pub(crate) session: SessionId,
    pub(crate) access: String,
    pub(crate) refresh: String,
}

#[derive(Debug, Default)]
struct Beliefs {
    /// Passwords that the account may have, the most likely one last.
    candidates: Vec<PasswordId>,
    exists: bool,
    passwords: u32,
    sessions: Vec<Tokens>,
    /// Sessions that have ended, as far as the clients know.
    ended: Vec<SessionId>,
    session_count: u32,
    /// Sessions whose refresh token is being used: using it twice at once ends the session.
    refreshing: Vec<SessionId>,
    failed_logins: u32,
}

impl Account {
    pub(crate) fn new(login: String, lifetime: Duration) -> Self {
        Self {
            login,
            operations: Mutex::default(),
            beliefs: Mutex::default(),
            lifetime,
            retired: OnceLock::new(),
        }
    }

    fn beliefs(&self) -> MutexGuard<'_, Beliefs> {
        self.beliefs.lock().expect("no holder of the lock panics")
    }

    pub(crate) fn operations(&self) -> MutexGuard<'_, Vec<Operation>> {
        self.operations
            .lock()
            .expect("no holder of the lock panics")
    }

    /// Returns true if the account should not be used any more.
    pub(crate) fn is_used_up(&self) -> bool {
        self.operations().len() >= MAX_OPERATIONS
            || self.beliefs().failed_logins >= MAX_FAILED_LOGINS
    }

    /// Returns the text of a password.
    pub(crate) fn password(&self, PasswordId(number): PasswordId) -> String {
        format!("{} has password {number}", self.login)
    }

    /// Returns the passwords that the account may have, the most likely one first.
    pub(crate) fn candidates(&self) -> Vec<PasswordId> {
        self.beliefs().candidates.iter().rev().copied().collect()
    }

    /// Returns the next action of a client, with the tokens that it presents.
    pub(crate) fn choose(&self, random: &mut Random) -> (Action, Option<Tokens>) {
        let mut beliefs = self.beliefs();
        let is_likely = if beliefs.exists { 1 } else { 60 };
        if beliefs.candidates.is_empty() || random.chance(is_likely) {
            let password = beliefs.new_password();
            return (Action::Register { password }, None);
        }
        let current = *beliefs.candidates.last().expect("there is one");
        let likely = if random.chance(10) && beliefs.failed_logins + 2 < MAX_FAILED_LOGINS {
            random.choose(&beliefs.candidates)
        } else {
            current
        };
        let choice = random.within(0..100);
        if beliefs.sessions.is_empty() || choice < 14 {
            return (Action::LogIn { password: likely }, None);
        }
        let tokens = beliefs.choose_tokens(random);
        let session = tokens.session;
        let action = match choice {
            14..24 if !beliefs.refreshing.contains(&session) => {
                beliefs.refreshing.push(session);
                Action::Refresh { session }
            }
            24..34 => Action::LogOut { session },
            34..38 => Action::LogOutEverywhere { session },
            38..44 => Action::ChangePassword {
                session,
                from: current,
                to: beliefs.new_password(),
            },
            44..47 => Action::Delete { password: likely },
            _ => Action::UseToken {
                session,
                decision: if random.chance(50) {
                    Decision::AuthApi
                } else {
                    Decision::Gateway
                },
            },
        };
        (action, Some(tokens))
    }

    /// Returns the number of a session that a login has created, and remembers its tokens.
    pub(crate) fn add_session(&self, access: String, refresh: String) -> SessionId {
        let mut beliefs = self.beliefs();
        let session = SessionId(beliefs.session_count);
        beliefs.session_count += 1;
        beliefs.sessions.push(Tokens {
            session,
            access,
            refresh,
        });
        if beliefs.sessions.len() > REMEMBERED_SESSIONS {
            beliefs.sessions.remove(0);
        }
        session
    }

    /// Replaces the tokens of a session.
    pub(crate) fn refreshed(&self, session: SessionId, access: String, refresh: String) {
        let mut beliefs = self.beliefs();
        if let Some(tokens) = beliefs
            .sessions
            .iter_mut()
            .find(|tokens| tokens.session == session)
        {
            (tokens.access, tokens.refresh) = (access, refresh);
        }
    }

    /// Records an operation, and what it tells about the account.
    pub(crate) fn record(&self, operation: Operation) {
        let mut beliefs = self.beliefs();
        let is_unknown = operation.outcome.is_unknown();
        match (operation.action, &operation.outcome) {
            (Action::Register { password }, Outcome::Done)
            | (Action::LogIn { password }, Outcome::LoggedIn(_)) => {
                beliefs.exists = true;
                beliefs.prefer(password);
            }
            (Action::ChangePassword { to, .. }, Outcome::Done) => beliefs.prefer(to),
            (Action::Register { .. }, Outcome::LoginTaken) => beliefs.exists = true,
            (Action::Register { password } | Action::ChangePassword { to: password, .. }, _)
                if is_unknown =>
            {
                beliefs.prefer(password);
            }
            (Action::Delete { .. }, Outcome::Done) => beliefs.exists = false,
            (Action::LogIn { password }, Outcome::InvalidCredentials) => {
                beliefs.failed_logins += 1;
                beliefs.doubt(password);
            }
            _ => {}
        }
        match operation.action {
            Action::LogOut { session } => beliefs.ended.push(session),
            action if operation.outcome == Outcome::InvalidToken => {
                beliefs.ended.extend(action.session());
            }
            _ => {}
        }
        if let Action::Refresh { session } = operation.action {
            beliefs.refreshing.retain(|other| *other != session);
        }
        drop(beliefs);
        self.operations().push(operation);
    }
}

impl Beliefs {
    fn new_password(&mut self) -> PasswordId {
        self.passwords += 1;
        PasswordId(self.passwords)
    }

    /// Returns the tokens of a session: mostly of one that should be active, if there is any.
    fn choose_tokens(&self, random: &mut Random) -> Tokens {
        let active: Vec<_> = self
            .sessions
            .iter()
            .filter(|tokens| !self.ended.contains(&tokens.session))
            .collect();
        if active.is_empty() || random.chance(20) {
            let all: Vec<_> = self.sessions.iter().collect();
            random.choose(&all).clone()
        } else {
            random.choose(&active).clone()
        }
    }

    /// Makes a password the most likely one.
    fn prefer(&mut self, password: PasswordId) {
        self.candidates.retain(|other| *other != password);
        self.candidates.push(password);
        if self.candidates.len() > CANDIDATES {
            self.candidates.remove(0);
        }
    }

    /// Makes a password the least likely one.
    fn doubt(&mut self, password: PasswordId) {
        if let Some(position) = self.candidates.iter().position(|other| *other == password) {
            self.candidates.remove(position);
            self.candidates.insert(0, password);
        }
    }
}
