//! Store of sessions as auth-api uses Redis: scripts that change sessions and publish in one step, pub/sub, and
//! asynchronous replication, whose failover loses the last changes. A primary that was replaced goes on for the clients that
//! are connected to it, but rejects writes once it knows that its replicas are gone (`min-replicas-to-write`). Beside it the
//! accounts, as PostgreSQL has them.

use std::cell::RefCell;
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
    /// Time after which it knows that its replicas are gone.
    writable_until: Option<Duration>,
    /// True after its demotion: it follows the primary.
    is_replica: bool,
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
    /// Write that changes nothing.
    ConfirmPrimary,
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
    /// The server rejects writes, and lookups that have to be current.
    Rejected,
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

    /// Returns the server to which a connection leads: the primary, or the one that it has replaced.
    fn server_of(&self, connection: &Connection) -> Rc<RefCell<Store>> {
        let is_of = |store: &RefCell<Store>| connection.is_open_at(store.borrow().incarnation);
        let former = self.former.borrow().clone();
        // A Sentinel that is cut off names the former primary to those that connect.
        let is_misled = connection.incarnation.get().is_none() && self.chance(20);
        former
            .filter(|former| is_misled || is_of(former))
            .unwrap_or_else(|| Rc::clone(&self.store))
    }

    fn arrive(self: &Rc<Self>, connection: Rc<Connection>, id: u64, command: Command) {
        let server = self.server_of(&connection);
        let (hung_until, incarnation, is_down) = {
            let store = server.borrow();
            (store.hung_until, store.incarnation, store.is_down)
        };
        if self.executor.now() < hung_until {
            if let Command::Open = command {
                connection.incarnation.set(Some(incarnation));
            }
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
        let reply = self.execute(&server, &connection, command);
        connection.deliver(Inbound::Reply(id, reply));
    }

    fn execute(
        self: &Rc<Self>,
        server: &Rc<RefCell<Store>>,
        connection: &Rc<Connection>,
        command: Command,
    ) -> Reply {
        let now = self.executor.now();
        if command.needs_replicas() && !server.borrow().is_writable(now) {
            self.count("commands rejected by a primary without replicas");
            return Reply::Rejected;
        }
        match command {
            Command::Open | Command::ConfirmPrimary => Reply::Done,
            Command::Subscribe(channels) => {
                connection.channels.replace(channels);
                let weak = Rc::downgrade(connection);
                let subscribers = &mut server.borrow_mut().subscribers;
                if !subscribers.iter().any(|other| other.ptr_eq(&weak)) {
                    subscribers.push(weak);
                }
                Reply::Done
            }
            Command::Publish { channel, message } => {
                self.publish_at(server, &channel, &message);
                Reply::Done
            }
            Command::Create {
                session,
                user,
                auth_time,
            } => {
                let created = StoredSession { user, auth_time };
                server
                    .borrow_mut()
                    .change(now, Change::Set(session, created));
                Reply::Done
            }
            Command::Check { session, user } => {
                let store = server.borrow();
                let found = store.sessions.get(session.as_bytes());
                let found = found.filter(|found| found.user == user);
                Reply::AuthTime(found.map(|found| found.auth_time))
            }
            Command::Index(user) => Reply::Index(server.borrow().sessions_of(user)),
            Command::End {
                session,
                user,
                header,
            } => {
                let invalidation = format!("{header} {session}");
                self.delete_and_publish(server, vec![session], &invalidation, user);
                Reply::Ended {
                    incarnation: server.borrow().incarnation,
                    others: 0,
                }
            }
            Command::EndAll {
                user,
                sessions,
                kept,
                header,
            } => {
                let mut store = server.borrow_mut();
                let kept_id = kept.map(|(session, _)| session);
                if let Some((session, auth_time)) = kept
                    && store.sessions.contains_key(session.as_bytes())
                {
                    let changed = StoredSession { user, auth_time };
                    store.change(now, Change::Set(session, changed));
                }
                let remaining = store.sessions_of(user).into_iter();
                let others = remaining
                    .filter(|session| !sessions.contains(session) && Some(*session) != kept_id)
                    .count();
                let incarnation = store.incarnation;
                drop(store);
                let invalidation = format!("{header} user:{}", user.0);
                self.delete_and_publish(server, sessions, &invalidation, user);
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
        server: &Rc<RefCell<Store>>,
        sessions: Vec<SessionId>,
        invalidation: &str,
        user: UserId,
    ) {
        let changed = Rc::clone(server);
        let delete = move |now| {
            for session in sessions {
                let mut store = changed.borrow_mut();
                if store.is_of(session, user) {
                    store.change(now, Change::Delete(session));
                }
            }
        };
        if self.variant == Variant::PublishesBeforeDeletion {
            let later = self.executor.now() + Duration::from_millis(20);
            self.executor.call_at(later, move || delete(later));
        } else {
            delete(self.executor.now());
        }
        self.publish_at(server, INVALIDATION_CHANNEL, invalidation);
    }

    /// Publishes a message at the primary, as another program could.
    pub(super) fn publish(&self, channel: &str, text: &str) {
        self.publish_at(&self.store, channel, text);
    }

    /// Delivers a message to the subscribers of a server and of its replica.
    fn publish_at(&self, server: &Rc<RefCell<Store>>, channel: &str, text: &str) {
        deliver(server, channel, text);
        if Rc::ptr_eq(server, &self.store)
            && let Some(former) = self.former.borrow().as_ref()
            && former.borrow().is_replica
        {
            deliver(former, channel, text);
        }
    }

    /// Makes the store do nothing for a time, as SIGSTOP and SIGCONT do.
    pub(super) fn hang_store(&self, duration: Duration) {
        let mut store = self.store.borrow_mut();
        store.hung_until = store.hung_until.max(self.executor.now() + duration);
    }

    pub(super) fn resume_store(&self) {
        self.store.borrow_mut().hung_until = Duration::ZERO;
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
            store.writable_until = None;
            store.incarnation = self.next_incarnation();
            store.subscribers.clear();
        }
        let former = self
            .former
            .borrow()
            .as_ref()
            .map(|store| store.borrow().incarnation);
        let mut connections = self.connections.borrow_mut();
        connections.retain(|connection| connection.strong_count() > 0);
        for connection in connections.iter().filter_map(Weak::upgrade) {
            if former.is_some_and(|former| connection.is_open_at(former)) {
                continue;
            }
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
            (
                store.incarnation,
                store.forget_changes_after(replicated_until),
            )
        };
        self.note_restored(&restored, incarnation);
    }

    fn note_restored(&self, restored: &[SessionId], incarnation: u64) {
        let mut history = self.history.borrow_mut();
        for session in restored {
            let text = format!("{} is back: the failover lost its end", name(*session));
            history.note(self.executor.now(), || text);
            history.restored(*session, incarnation);
        }
    }

    fn next_incarnation(&self) -> u64 {
        let incarnation = self.last_incarnation.get() + 1;
        self.last_incarnation.set(incarnation);
        incarnation
    }

    /// Replaces the primary while clients may still reach it, until it is demoted.
    pub(super) fn divide_store(self: &Rc<Self>, division: Division) {
        let now = self.executor.now();
        {
            let mut store = self.store.borrow_mut();
            if store.is_down || store.writable_until.is_some() || self.former.borrow().is_some() {
                return;
            }
            store.writable_until = Some(now + division.writable_for);
            if division.is_paused {
                store.hung_until = now + division.writable_for;
            }
        }
        let incarnation = self.store.borrow().incarnation;
        let world = Rc::downgrade(self);
        let promoted_at = now + division.promoted_after;
        self.executor.call_at(promoted_at, move || {
            if let Some(world) = world.upgrade() {
                world.replace_primary(incarnation, now);
            }
        });
        let world = Rc::downgrade(self);
        let end = promoted_at.max(now + division.writable_for) + division.demoted_after;
        self.executor.call_at(end, move || {
            if let Some(world) = world.upgrade() {
                world.demote_former(incarnation);
            }
        });
    }

    fn replace_primary(&self, replaced: u64, replicated_until: Duration) {
        // It may have been restarted meanwhile.
        if self.store.borrow().incarnation != replaced || self.store.borrow().is_down {
            return;
        }
        let mut promoted = self.store.borrow().copy();
        promoted.incarnation = self.next_incarnation();
        let restored = promoted.forget_changes_after(replicated_until);
        let incarnation = promoted.incarnation;
        let former = self.store.replace(promoted);
        self.former.replace(Some(Rc::new(RefCell::new(former))));
        self.note(|| "another primary".to_owned());
        self.count("primaries replaced while clients reached them");
        self.note_restored(&restored, incarnation);
        // Some hosts cannot reach the former one either.
        for host in self.hosts().iter().filter(|_| self.chance(50)) {
            self.reset_connections(replaced, |connection| {
                Rc::ptr_eq(&connection.path, &host.path)
            });
        }
    }

    fn reset_connections(&self, incarnation: u64, is_reset: impl Fn(&Connection) -> bool) {
        for connection in self.connections.borrow().iter().filter_map(Weak::upgrade) {
            if connection.is_open_at(incarnation) && is_reset(&connection) {
                connection.reset();
            }
        }
    }

    /// Makes the former primary a replica, which closes its connections unless it is told to follow by hand.
    fn demote_former(self: &Rc<Self>, incarnation: u64) {
        let former = self.former.borrow().clone();
        let former = former.filter(|former| former.borrow().incarnation == incarnation);
        let Some(former) = former else {
            return;
        };
        self.note(|| "the former primary is a replica".to_owned());
        if former.borrow().is_replica || self.chance(50) {
            self.former.replace(None);
            return self.reset_connections(incarnation, |_| true);
        }
        former.borrow_mut().is_replica = true;
        let world = Rc::downgrade(self);
        let end = self.executor.now() + REPLICA_CONNECTIONS;
        self.executor.call_at(end, move || {
            if let Some(world) = world.upgrade() {
                world.demote_former(incarnation);
            }
        });
    }
}

/// Delivers a message to the subscribers of a server.
fn deliver(server: &RefCell<Store>, channel: &str, text: &str) {
    let subscribers = {
        let mut store = server.borrow_mut();
        let incarnation = store.incarnation;
        store.subscribers.retain(|subscriber| {
            subscriber
                .upgrade()
                .is_some_and(|subscriber| subscriber.is_open_at(incarnation))
        });
        store.subscribers.clone()
    };
    for subscriber in subscribers.iter().filter_map(Weak::upgrade) {
        let is_subscribed = subscriber
            .channels
            .borrow()
            .iter()
            .any(|name| name == channel);
        if is_subscribed {
            subscriber.deliver(Inbound::Message {
                channel: channel.to_owned(),
                text: text.to_owned(),
            });
        }
    }
}

/// Time for which a former primary that is a replica has its connections.
const REPLICA_CONNECTIONS: Duration = Duration::from_millis(1500);

/// Course of a division: durations from its beginning.
#[derive(Debug, Clone, Copy)]
pub(super) struct Division {
    /// True if the primary is paused for `writable_for`, false if it is cut off from its replicas.
    pub(super) is_paused: bool,
    pub(super) writable_for: Duration,
    pub(super) promoted_after: Duration,
    /// From when both have happened.
    pub(super) demoted_after: Duration,
}

impl Command {
    /// Returns whether a primary without replicas rejects it: changes, and lookups whose scripts try a write.
    fn needs_replicas(&self) -> bool {
        matches!(
            self,
            Self::ConfirmPrimary
                | Self::Create { .. }
                | Self::Check { .. }
                | Self::End { .. }
                | Self::EndAll { .. }
        )
    }
}

impl Store {
    fn is_writable(&self, now: Duration) -> bool {
        !self.is_replica && self.writable_until.is_none_or(|until| now <= until)
    }

    /// Returns what its replica has.
    fn copy(&self) -> Self {
        Self {
            log: self.log.clone(),
            sessions: self.sessions.clone(),
            ..Self::default()
        }
    }

    /// Undoes the changes after a time. Returns the sessions that are back.
    fn forget_changes_after(&mut self, replicated_until: Duration) -> Vec<SessionId> {
        let before: BTreeSet<_> = self.sessions.keys().copied().collect();
        self.log.retain(|(at, _)| *at <= replicated_until);
        self.sessions.clear();
        for (_, change) in &self.log {
            change.apply(&mut self.sessions);
        }
        self.sessions
            .keys()
            .filter(|session| !before.contains(*session))
            .map(|session| SessionId::from_bytes(*session))
            .collect()
    }

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
