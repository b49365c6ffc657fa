//! Store of sessions as auth-api uses Redis: scripts that change sessions and publish in one step, pub/sub, and
//! asynchronous replication, whose failover loses the last changes. Beside it the accounts, as PostgreSQL has them.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::Variant;
use super::history::name;
use super::network::{Connection, Inbound};
use super::world::World;
use crate::ids::{SessionId, UserId};
use crate::message::{INVALIDATION_CHANNEL, UNACKNOWLEDGED_HEADER};

/// Sessions and subscribers of the primary.
#[derive(Default)]
pub(super) struct Store {
    /// Number of the primary, or of its process.
    pub(super) incarnation: u64,
    is_down: bool,
    /// Time up to which the primary does nothing.
    hung_until: Duration,
    sessions: BTreeMap<[u8; 16], StoredSession>,
    /// Changes, of which a failover loses the last ones.
    log: Vec<(Duration, Change)>,
    subscribers: Vec<Weak<Connection>>,
}

#[derive(Debug, Clone, Copy)]
struct StoredSession {
    user: UserId,
    auth_time: i64,
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Set(SessionId, StoredSession),
    Delete(SessionId),
}

/// Command or script. `EndAll` is `end_all.lua`, and so on.
#[derive(Debug, Clone)]
pub(super) enum Command {
    Open,
    Subscribe(Vec<String>),
    Publish {
        channel: String,
        message: String,
    },
    Create {
        session: SessionId,
        user: UserId,
        auth_time: i64,
    },
    Check {
        session: SessionId,
        user: UserId,
    },
    Index(UserId),
    End {
        session: SessionId,
        user: UserId,
        header: String,
    },
    EndAll {
        user: UserId,
        sessions: Vec<SessionId>,
        kept: Option<(SessionId, i64)>,
        header: String,
    },
}

/// Reply to a command.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    Done,
    AuthTime(Option<i64>),
    Index(Vec<SessionId>),
    /// Incarnation in which the sessions were ended, and number of others that the index has.
    Ended {
        incarnation: u64,
        others: usize,
    },
}

impl World {
    /// Sends a command over a connection.
    pub(super) fn send(connection: &Rc<Connection>, id: u64, command: Command) {
        let sender = Rc::clone(connection);
        connection.transmit(super::network::Direction::Up, move |world| {
            world.arrive(sender, id, command);
        });
    }

    fn arrive(self: &Rc<Self>, connection: Rc<Connection>, id: u64, command: Command) {
        let (hung_until, incarnation, is_down) = {
            let store = self.store.borrow();
            (store.hung_until, store.incarnation, store.is_down)
        };
        if self.executor.now() < hung_until {
            let world = Rc::downgrade(self);
            return self.executor.call_at(hung_until, move || {
                if let Some(world) = world.upgrade() {
                    world.arrive(connection, id, command);
                }
            });
        }
        if is_down {
            return connection.reset();
        }
        if let Command::Open = command {
            connection.incarnation.set(Some(incarnation));
        } else if !connection.is_open_at(incarnation) {
            return connection.reset();
        }
        let reply = self.execute(&connection, command);
        connection.deliver(Inbound::Reply(id, reply));
    }

    fn execute(self: &Rc<Self>, connection: &Rc<Connection>, command: Command) -> Reply {
        match command {
            Command::Open => Reply::Done,
            Command::Subscribe(channels) => {
                connection.channels.replace(channels);
                let weak = Rc::downgrade(connection);
                let subscribers = &mut self.store.borrow_mut().subscribers;
                if !subscribers.iter().any(|other| other.ptr_eq(&weak)) {
                    subscribers.push(weak);
                }
                Reply::Done
            }
            Command::Publish { channel, message } => {
                self.publish(&channel, &message);
                Reply::Done
            }
            Command::Create {
                session,
                user,
                auth_time,
            } => {
                let created = StoredSession { user, auth_time };
                self.change(Change::Set(session, created));
                Reply::Done
            }
            Command::Check { session, user } => {
                let store = self.store.borrow();
                let found = store.sessions.get(session.as_bytes());
                let found = found.filter(|found| found.user == user);
                Reply::AuthTime(found.map(|found| found.auth_time))
            }
            Command::Index(user) => Reply::Index(self.store.borrow().sessions_of(user)),
            Command::End {
                session,
                user,
                header,
            } => {
                self.delete_and_publish(vec![session], &format!("{header} {session}"), user);
                Reply::Ended {
                    incarnation: self.store.borrow().incarnation,
                    others: 0,
                }
            }
            Command::EndAll {
                user,
                sessions,
                kept,
                header,
            } => {
                let mut store = self.store.borrow_mut();
                let kept_id = kept.map(|(session, _)| session);
                if let Some((session, auth_time)) = kept
                    && store.sessions.contains_key(session.as_bytes())
                {
                    let changed = StoredSession { user, auth_time };
                    store.change(self.executor.now(), Change::Set(session, changed));
                }
                let remaining = store.sessions_of(user).into_iter();
                let others = remaining
                    .filter(|session| !sessions.contains(session) && Some(*session) != kept_id)
                    .count();
                let incarnation = store.incarnation;
                drop(store);
                self.delete_and_publish(sessions, &format!("{header} user:{}", user.0), user);
                Reply::Ended {
                    incarnation,
                    others,
                }
            }
        }
    }

    /// Deletes sessions and publishes it in one step, unless the variant does it in two.
    fn delete_and_publish(
        self: &Rc<Self>,
        sessions: Vec<SessionId>,
        invalidation: &str,
        user: UserId,
    ) {
        let delete = move |world: &World| {
            for session in sessions {
                if world.store.borrow().is_of(session, user) {
                    world.change(Change::Delete(session));
                }
            }
        };
        if self.variant == Variant::PublishesBeforeDeletion {
            let world = Rc::downgrade(self);
            let later = self.executor.now() + Duration::from_millis(20);
            self.executor.call_at(later, move || {
                if let Some(world) = world.upgrade() {
                    delete(&world);
                }
            });
        } else {
            delete(self);
        }
        self.publish(INVALIDATION_CHANNEL, invalidation);
    }

    fn change(&self, change: Change) {
        let now = self.executor.now();
        self.store.borrow_mut().change(now, change);
    }

    pub(super) fn publish(&self, channel: &str, text: &str) {
        let subscribers = {
            let mut store = self.store.borrow_mut();
            let incarnation = store.incarnation;
            store.subscribers.retain(|subscriber| {
                subscriber
                    .upgrade()
                    .is_some_and(|subscriber| subscriber.is_open_at(incarnation))
            });
            store.subscribers.clone()
        };
        for subscriber in subscribers.iter().filter_map(Weak::upgrade) {
            if subscriber
                .channels
                .borrow()
                .iter()
                .any(|name| name == channel)
            {
                subscriber.deliver(Inbound::Message {
                    channel: channel.to_owned(),
                    text: text.to_owned(),
                });
            }
        }
    }

    /// Makes the store do nothing for a time, as SIGSTOP and SIGCONT do.
    pub(super) fn hang_store(&self, duration: Duration) {
        self.store.borrow_mut().hung_until = self.executor.now() + duration;
    }

    /// Ends the primary. Another one, or the same again, serves after `outage`, without the changes of the last
    /// `lost`.
    pub(super) fn restart_store(self: &Rc<Self>, outage: Duration, lost: Duration) {
        let now = self.executor.now();
        {
            let mut store = self.store.borrow_mut();
            if std::mem::replace(&mut store.is_down, true) {
                return;
            }
            store.hung_until = Duration::ZERO;
            store.incarnation += 1;
            store.subscribers.clear();
        }
        let mut connections = self.connections.borrow_mut();
        connections.retain(|connection| connection.strong_count() > 0);
        for connection in connections.iter().filter_map(Weak::upgrade) {
            // A host that is gone closes nothing.
            if self.chance(20) {
                connection.incarnation.set(None);
                connection.die();
            } else if connection.incarnation.get().is_some() {
                connection.reset();
            }
        }
        drop(connections);
        let world = Rc::downgrade(self);
        self.executor.call_at(now + outage, move || {
            if let Some(world) = world.upgrade() {
                world.promote(now.saturating_sub(lost));
            }
        });
    }

    fn promote(&self, replicated_until: Duration) {
        let (incarnation, restored) = {
            let mut store = self.store.borrow_mut();
            store.is_down = false;
            let before: BTreeSet<_> = store.sessions.keys().copied().collect();
            store.log.retain(|(at, _)| *at <= replicated_until);
            store.sessions.clear();
            let log = std::mem::take(&mut store.log);
            for (_, change) in &log {
                change.apply(&mut store.sessions);
            }
            store.log = log;
            let restored: Vec<_> = store
                .sessions
                .keys()
                .filter(|session| !before.contains(*session))
                .map(|session| SessionId::from_bytes(*session))
                .collect();
            (store.incarnation, restored)
        };
        let mut history = self.history.borrow_mut();
        for session in restored {
            let text = format!("{} is back: the failover lost its end", name(session));
            history.note(self.executor.now(), || text);
            history.restored(session, incarnation);
        }
    }
}

impl Store {
    fn is_of(&self, session: SessionId, user: UserId) -> bool {
        let found = self.sessions.get(session.as_bytes());
        found.is_some_and(|found| found.user == user)
    }

    fn sessions_of(&self, user: UserId) -> Vec<SessionId> {
        self.sessions
            .iter()
            .filter(|(_, session)| session.user == user)
            .map(|(id, _)| SessionId::from_bytes(*id))
            .collect()
    }

    fn change(&mut self, now: Duration, change: Change) {
        change.apply(&mut self.sessions);
        self.log.push((now, change));
    }
}

impl Change {
    fn apply(self, sessions: &mut BTreeMap<[u8; 16], StoredSession>) {
        let _ = match self {
            Self::Set(id, session) => sessions.insert(*id.as_bytes(), session),
            Self::Delete(id) => sessions.remove(id.as_bytes()),
        };
    }
}

/// Text of an invalidation of all sessions that is not waited for, as an operator could publish it.
pub(super) fn foreign_invalidation() -> String {
    format!("{UNACKNOWLEDGED_HEADER} user:*")
}

/// Account, as auth-api stores it (`users/postgres.rs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) status: Status,
    /// Version of the password hash.
    pub(super) password: u64,
    /// Time up to which its sessions have ended (µs).
    pub(super) cutoff: i64,
    pub(super) last_login: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Active,
    Disabled,
    Deleted,
}

impl Account {
    pub(super) fn new() -> Self {
        Self {
            status: Status::Active,
            password: 0,
            cutoff: 0,
            last_login: 0,
        }
    }

    pub(super) fn permits(&self, auth_time: i64) -> bool {
        self.status == Status::Active && auth_time > self.cutoff
    }

    pub(super) fn next_auth_time(&self, now: i64) -> i64 {
        now.max(self.cutoff + 2)
    }

    /// Returns the time of the session that a change of the password keeps.
    pub(super) fn kept_auth_time(&self) -> i64 {
        self.cutoff + 1
    }

    /// Ends every session up to `cutoff`.
    pub(super) fn end_sessions(&mut self, cutoff: i64, variant: Variant) {
        let ended = match variant {
            Variant::KeptSessionOutlivesCutoffs => self.cutoff,
            _ => self.kept_auth_time(),
        };
        self.cutoff = ended.max(cutoff).max(self.last_login);
    }

    /// Records a login, unless the account has changed since it was read as `seen`.
    pub(super) fn record_login(&mut self, seen: &Self, auth_time: i64, variant: Variant) -> bool {
        let is_unchanged = self.password == seen.password && self.permits(auth_time);
        if is_unchanged {
            self.last_login = match variant {
                Variant::LastLoginGoesBack => auth_time,
                _ => self.last_login.max(auth_time),
            };
        }
        is_unchanged
    }
}
