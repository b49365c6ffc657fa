//! Plain model of accounts, sessions and tokens: the rules alone, without stores, replicas and caches.

use std::time::Duration;

use tests::Store;

/// Step of time. It changes what is valid only where a limit lies between two multiples of it, and every limit is an odd
/// multiple of half of it. So the time that a case itself takes, which is less than half of it, changes nothing.
pub(crate) const TIME_UNIT: Duration = Duration::from_secs(200);

pub(crate) const REFRESH_GRACE: Duration = Duration::from_mins(5);
pub(crate) const ACCESS_TOKEN_LIFETIME: Duration = Duration::from_secs(3700);
/// Time from a login or an exchange of a refresh token to the end of the session.
pub(crate) const SESSION_LIFETIME: Duration = Duration::from_secs(7300);
pub(crate) const SESSION_MAX_AGE: Duration = Duration::from_secs(9100);

/// Unused successors of one refresh token that are accepted.
const MAX_UNUSED_SUCCESSORS: usize = 4;

/// Index of an account.
pub(crate) type User = usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AccountState {
    /// Not registered, or deleted.
    Absent,
    Active,
    Disabled,
}

#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) state: AccountState,
    /// Number of the password. Later ones have higher numbers.
    pub(crate) password: usize,
    /// Failed verifications of its password, also those that do not count any more.
    pub(crate) failures: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SessionState {
    Active,
    Ended,
    /// Ended by the account, although the store of sessions still has it.
    EndedByAccount,
}

#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) id: String,
    pub(crate) user: User,
    pub(crate) access_tokens: Vec<AccessToken>,
    /// In the order in which they were issued.
    pub(crate) refresh_tokens: Vec<RefreshToken>,
    state: SessionState,
    created_at: Duration,
    expires_at: Duration,
}

#[derive(Debug, Clone)]
pub(crate) struct AccessToken {
    pub(crate) text: String,
    expires_at: Duration,
}

/// A refresh token with its place among those of its session.
#[derive(Debug, Clone)]
pub(crate) struct RefreshToken {
    pub(crate) text: String,
    predecessor: Option<usize>,
    successors: Vec<usize>,
    /// Time at which the last successor was issued.
    exchanged_at: Duration,
}

impl RefreshToken {
    fn is_used(&self) -> bool {
        !self.successors.is_empty()
    }
}

/// Response that a request with an access token must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accepted,
    Rejected,
    /// The session has expired, but a replica may have it in its cache for three more seconds.
    Cached,
}

/// Outcome that the exchange of a refresh token must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exchange {
    /// The response has a token that was never issued before.
    NewSuccessor,
    /// The response has the token with this index again.
    Retry(usize),
    /// Two parties hold the token: the session ends.
    Reuse,
    SessionNotActive,
}

#[derive(Debug)]
pub(crate) struct Model {
    store: Store,
    /// Time since the beginning of the case.
    now: Duration,
    pub(crate) accounts: [Account; 2],
    /// In the order of their logins.
    pub(crate) sessions: Vec<Session>,
}

impl Model {
    pub(crate) fn new(store: Store) -> Self {
        let account = Account {
            state: AccountState::Absent,
            password: 0,
            failures: 0,
        };
        Self {
            store,
            now: Duration::ZERO,
            accounts: [account.clone(), account],
            sessions: Vec::new(),
        }
    }

    pub(crate) fn pass(&mut self, duration: Duration) {
        self.now += duration;
    }

    pub(crate) fn is_active(&self, session: &Session) -> bool {
        session.state == SessionState::Active && self.now < session.expires_at
    }

    /// Returns the indices of the active sessions of a user.
    pub(crate) fn active_sessions(&self, user: User) -> impl Iterator<Item = usize> {
        let is_active = move |session: &Session| session.user == user && self.is_active(session);
        let sessions = self.sessions.iter().enumerate();
        sessions.filter_map(move |(index, session)| is_active(session).then_some(index))
    }

    pub(crate) fn is_expired(&self, token: &AccessToken) -> bool {
        self.now >= token.expires_at
    }

    pub(crate) fn verdict(&self, session: &Session, token: &AccessToken) -> Verdict {
        let may_be_cached = self.store == Store::PostgresRedis;
        if session.state != SessionState::Active || self.is_expired(token) {
            Verdict::Rejected
        } else if self.is_active(session) {
            Verdict::Accepted
        } else if may_be_cached {
            Verdict::Cached
        } else {
            Verdict::Rejected
        }
    }

    /// Returns whether a refresh token is unused and can be exchanged.
    pub(crate) fn is_unused(&self, session: &Session, token: usize) -> bool {
        !session.refresh_tokens[token].is_used()
            && self.exchange(session, token) == Exchange::NewSuccessor
    }

    /// Returns the outcome of presenting a refresh token.
    pub(crate) fn exchange(&self, session: &Session, token: usize) -> Exchange {
        let tokens = &session.refresh_tokens;
        if !self.is_active(session) {
            Exchange::SessionNotActive
        } else if let Some(last) = tokens[token].successors.last() {
            self.exchange_again(tokens, &tokens[token], *last)
        } else if is_accepted_once(tokens, token) {
            Exchange::NewSuccessor
        } else {
            Exchange::Reuse
        }
    }

    /// Returns the outcome of presenting a token again, with its last successor.
    fn exchange_again(
        &self,
        tokens: &[RefreshToken],
        token: &RefreshToken,
        last: usize,
    ) -> Exchange {
        let is_within_grace = self.now.saturating_sub(token.exchanged_at) <= REFRESH_GRACE;
        if !is_any_used(tokens, &token.successors) {
            // The response was lost.
            return if is_within_grace {
                Exchange::Retry(last)
            } else {
                Exchange::NewSuccessor
            };
        }
        // A retry has the current token, if the last successor and no successor of that one was used.
        let next = &tokens[last].successors;
        match next.last() {
            Some(current) if is_within_grace && !is_any_used(tokens, next) => {
                Exchange::Retry(*current)
            }
            _ => Exchange::Reuse,
        }
    }

    /// Adds the tokens of a login.
    pub(crate) fn log_in(
        &mut self,
        user: User,
        id: String,
        access_token: String,
        refresh_token: String,
    ) {
        let refresh_token = RefreshToken {
            text: refresh_token,
            predecessor: None,
            successors: Vec::new(),
            exchanged_at: Duration::ZERO,
        };
        self.sessions.push(Session {
            id,
            user,
            access_tokens: Vec::new(),
            refresh_tokens: vec![refresh_token],
            state: SessionState::Active,
            created_at: self.now,
            expires_at: self.now + SESSION_LIFETIME,
        });
        self.add_access_token(self.sessions.len() - 1, access_token);
    }

    pub(crate) fn add_access_token(&mut self, session: usize, text: String) {
        self.sessions[session].access_tokens.push(AccessToken {
            text,
            expires_at: self.now + ACCESS_TOKEN_LIFETIME,
        });
    }

    /// Adds a new successor of a refresh token, which extends the session.
    pub(crate) fn add_successor(&mut self, session: usize, predecessor: usize, text: String) {
        let now = self.now;
        let session = &mut self.sessions[session];
        let index = session.refresh_tokens.len();
        session.refresh_tokens.push(RefreshToken {
            text,
            predecessor: Some(predecessor),
            successors: Vec::new(),
            exchanged_at: Duration::ZERO,
        });
        let predecessor = &mut session.refresh_tokens[predecessor];
        predecessor.successors.push(index);
        predecessor.exchanged_at = now;
        session.expires_at = (now + SESSION_LIFETIME).min(session.created_at + SESSION_MAX_AGE);
    }

    /// Ends a session. Returns whether that changed something.
    pub(crate) fn end(&mut self, session: usize) -> bool {
        let session = &mut self.sessions[session];
        let was_stored = session.state != SessionState::Ended && self.now < session.expires_at;
        session.state = SessionState::Ended;
        was_stored
    }

    /// Ends the sessions of a user except `kept` and returns the number of those that this changed.
    pub(crate) fn end_all(&mut self, user: User, kept: Option<usize>) -> usize {
        (0..self.sessions.len())
            .filter(|index| self.sessions[*index].user == user && Some(*index) != kept)
            .collect::<Vec<_>>()
            .into_iter()
            .filter(|index| self.end(*index))
            .count()
    }

    /// Ends the sessions of all users by their accounts.
    pub(crate) fn end_all_by_account(&mut self) {
        for session in &mut self.sessions {
            if session.state == SessionState::Active {
                session.state = SessionState::EndedByAccount;
            }
        }
    }
}

fn is_any_used(tokens: &[RefreshToken], indices: &[usize]) -> bool {
    indices.iter().any(|index| tokens[*index].is_used())
}

/// Returns whether an unused token can be exchanged: another successor of its predecessor was not used, and not many
/// were issued after it.
fn is_accepted_once(tokens: &[RefreshToken], token: usize) -> bool {
    let Some(predecessor) = tokens[token].predecessor else {
        return true;
    };
    let siblings = &tokens[predecessor].successors;
    let mut accepted = siblings.iter().rev().take(MAX_UNUSED_SUCCESSORS);
    accepted.any(|index| *index == token) && !is_any_used(tokens, siblings)
}
