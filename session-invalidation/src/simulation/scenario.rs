//! Clients and faults of a run.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Variant;
use super::history::{Check, CheckSource, Counts, History, name};
use super::process::{EndedByAccount, Host, Process, Role, Unavailable};
use super::store::{self, Division};
use super::world::World;
use crate::ids::{SessionId, UserId};
use crate::lease::LEASE_DURATION;
use crate::message::INVALIDATION_CHANNEL;

/// Time with faults.
const FAULTY: Duration = Duration::from_secs(13);
/// Time without faults after which every participant has recovered: it has replaced a dead connection for commands (1.7 s),
/// then that of the subscriber (2.5 s), and has been subscribed for a lease.
const RECOVERY: Duration = Duration::from_secs(6);
/// Time in which every cache has to serve requests after that.
const HEALTHY: Duration = Duration::from_secs(2);
/// Longest time that an acknowledgement takes in a healthy system: a few packets, of which each may be late.
const HEALTHY_ACKNOWLEDGEMENT: Duration = Duration::from_millis(200);
/// Longest wait for acknowledgements: a lease on a clock that is slow, and the scheduling of tasks.
const MAX_ACKNOWLEDGEMENT: Duration = Duration::from_millis(1_010);
/// Shortest time from the last response of a primary to the promotion of another one.
const MIN_PROMOTION: Duration = Duration::from_secs(4);
/// Longest division.
const MAX_DIVISION: Duration = Duration::from_millis(9_500);
const CLIENTS: u32 = 4;
/// Sessions that are probed after the end of all, the newest ones.
const MAX_PROBED: usize = 4;

/// Result of a run.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) counts: Counts,
    pub(super) violations: Vec<String>,
    /// Events, if they were recorded.
    pub(super) history: String,
}

/// Runs the scenario that a seed determines.
pub(super) fn run(seed: u64, variant: Variant, history: History) -> Report {
    let world = World::new(seed, variant, history);
    for _ in 0..CLIENTS {
        world
            .executor
            .spawn(&world.outside, client(Rc::clone(&world)));
    }
    world
        .executor
        .spawn(&world.outside, inject_faults(Rc::clone(&world)));
    world.executor.run_until(FAULTY);
    world.heal();
    for host in world.hosts() {
        let visitor = visit(Rc::clone(&world), Rc::clone(host));
        world.executor.spawn(&world.outside, visitor);
    }
    world.executor.run_until(FAULTY + RECOVERY);
    let healthy = expect_health(Rc::clone(&world));
    world.executor.spawn(&world.outside, healthy);
    world.executor.run_until(FAULTY + RECOVERY + HEALTHY);
    world.tear_down();
    let (counts, violations, history) = world.history.take().into_parts();
    Report {
        counts,
        violations,
        history,
    }
}

impl World {
    fn random_host(&self) -> Rc<Host> {
        Rc::clone(self.choose(self.hosts()).expect("there are hosts"))
    }

    fn random_replica(&self) -> Option<Rc<Process>> {
        let replicas = self
            .hosts()
            .iter()
            .filter(|host| host.role == Role::Replica);
        let replicas: Vec<_> = replicas.filter_map(|host| host.running()).collect();
        self.choose(&replicas).cloned()
    }

    /// Runs an operation in a process. Returns `None` if the process is killed meanwhile.
    async fn call<T: 'static>(
        &self,
        process: &Rc<Process>,
        operation: impl Future<Output = T> + 'static,
    ) -> Option<T> {
        let (sender, result) = oneshot::channel();
        process.spawn(async move {
            let _ = sender.send(operation.await);
        });
        result.await.ok()
    }

    /// Checks a token at a host. Returns whether a cache of this host accepted it.
    async fn check(self: &Rc<Self>, host: &Rc<Host>, session: SessionId, user: UserId) -> bool {
        let Some(process) = host.running() else {
            return false;
        };
        let began = self.history.borrow_mut().moment(self.executor.now());
        let asked = Rc::clone(&process);
        let check = async move { asked.check(session, user).await };
        let result = self.call(&process, check).await;
        let mut history = self.history.borrow_mut();
        let now = self.executor.now();
        let text = || format!("check of {} at {}: {result:?}", name(session), host.name);
        history.note(now, text);
        let (count, is_cached) = match result {
            Some(Ok(Check::Accepted(CheckSource::ReplicaCache))) => {
                ("checks accepted from the cache of a replica", true)
            }
            Some(Ok(Check::Accepted(CheckSource::Store))) => {
                ("checks accepted by the store", false)
            }
            Some(Ok(Check::Accepted(CheckSource::GatewayCache))) => {
                ("checks accepted from the cache of a gateway", true)
            }
            Some(Ok(Check::Accepted(CheckSource::Verified))) => {
                ("checks accepted by a replica for a gateway", false)
            }
            Some(Ok(Check::Rejected)) => ("checks rejected", false),
            Some(Err(Unavailable)) | None => ("checks without a result", false),
        };
        history.count(count);
        if let Some(Ok(Check::Accepted(_))) = result {
            history.accepted(session, host.role, began, now, text);
        }
        is_cached
    }

    /// Checks a token at every host, soon after its end was acknowledged.
    fn probe(self: &Rc<Self>, session: SessionId, user: UserId) {
        for host in self.hosts() {
            let (world, host) = (Rc::clone(self), Rc::clone(host));
            let probe = async move {
                world.check(&host, session, user).await;
                let later = world.between(Duration::ZERO, Duration::from_millis(50));
                world.executor.sleep(later).await;
                world.check(&host, session, user).await;
            };
            self.executor.spawn(&self.outside, probe);
        }
    }

    async fn log_in(self: &Rc<Self>, user: UserId) -> Option<SessionId> {
        let process = self.random_replica()?;
        let session = self.new_session(user);
        let asked = Rc::clone(&process);
        let result = self
            .call(&process, async move { asked.log_in(user, session).await })
            .await;
        self.note(|| format!("login of user {} as {}: {result:?}", user.0, name(session)));
        if result != Some(Ok(true)) {
            self.count("logins refused or failed");
            return None;
        }
        self.count("logins");
        self.history.borrow_mut().logged_in(session);
        Some(session)
    }

    /// Ends a session, as a logout, the reuse of a refresh token or RFC 7009 does. Returns whether it was acknowledged.
    async fn end(self: &Rc<Self>, session: SessionId, user: UserId) -> bool {
        let Some(process) = self.random_replica() else {
            return false;
        };
        self.disturb();
        if self.chance(50) {
            self.race(session, user);
        }
        let began = self.executor.now();
        self.note(|| format!("logout of {} at {}", name(session), process.host.name));
        let (world, asked) = (Rc::clone(self), Rc::clone(&process));
        let end = async move {
            let Ok(ended) = asked.end(session, user).await else {
                world.count("logouts failed");
                return false;
            };
            let now = world.executor.now();
            world.note(|| format!("logout of {} acknowledged: {ended:?}", name(session)));
            let mut history = world.history.borrow_mut();
            history.ended(session, ended.incarnation, now);
            history.count("logouts acknowledged");
            if ended.waited > MAX_ACKNOWLEDGEMENT {
                let violation = format!(
                    "acknowledged after {:?} by {ended:?}",
                    now.saturating_sub(began)
                );
                history.violate(now, violation);
            }
            if ended.waited < LEASE_DURATION / 2 {
                history.count("logouts acknowledged by every participant");
            }
            drop(history);
            world.probe(session, user);
            true
        };
        self.call(&process, end).await.unwrap_or_default()
    }

    /// Ends sessions of a user by the account.
    async fn end_by_account(self: &Rc<Self>, user: UserId, kept: SessionId, how: AccountEnd) {
        let Some(process) = self.random_replica() else {
            return;
        };
        let mut sessions = self.history.borrow().sessions_of(user);
        if how == AccountEnd::AllUsers {
            sessions = self
                .users()
                .into_iter()
                .flat_map(|user| self.history.borrow().sessions_of(user))
                .collect();
        }
        self.disturb();
        self.note(|| format!("{how:?} of user {} at {}", user.0, process.host.name));
        let began = self.history.borrow_mut().moment(self.executor.now());
        let (world, asked) = (Rc::clone(self), Rc::clone(&process));
        let end = async move {
            let result = match how {
                AccountEnd::LogoutEverywhere => asked.log_out_everywhere(user).await.map(Some),
                AccountEnd::PasswordChange => {
                    sessions.retain(|session| *session != kept);
                    world.history.borrow_mut().password_change_began(kept);
                    let result = asked.change_password(user, kept).await;
                    let now = world.executor.now();
                    world.history.borrow_mut().password_change_ended(kept, now);
                    result
                }
                AccountEnd::Deletion => asked.delete(user).await.map(Some),
                AccountEnd::Disabling => Ok(Some(asked.disable(user).await)),
                AccountEnd::AllUsers => Ok(Some(asked.end_all_sessions(&world.users()).await)),
            };
            let now = world.executor.now();
            world.note(|| format!("{how:?} of user {}: {result:?}", user.0));
            let Ok(Some(extent)) = result else {
                return world.count(how.names().1);
            };
            world.count(how.names().0);
            if how.permits_logins() {
                let mut history = world.history.borrow_mut();
                sessions.retain(|session| !history.is_kept_since(*session, began));
            }
            if extent == EndedByAccount::AtReplicas {
                world.count("ends by accounts acknowledged without the store");
            }
            world
                .history
                .borrow_mut()
                .ended_by_account(&sessions, extent, now);
            for session in sessions.into_iter().rev().take(MAX_PROBED) {
                let user = world.history.borrow_mut().user_of(session);
                world.probe(session, user);
            }
        };
        self.call(&process, end).await;
    }

    /// Checks a token at every host while its session is being ended.
    fn race(self: &Rc<Self>, session: SessionId, user: UserId) {
        for host in self.hosts() {
            let (world, host) = (Rc::clone(self), Rc::clone(host));
            let check = async move {
                let pause = world.between(Duration::ZERO, Duration::from_millis(5));
                world.executor.sleep(pause).await;
                world.check(&host, session, user).await;
            };
            self.executor.spawn(&self.outside, check);
        }
    }

    /// Injects a fault while a session is being ended, at times.
    fn disturb(self: &Rc<Self>) {
        if self.executor.now() < FAULTY && self.chance(40) {
            let world = Rc::clone(self);
            let fault = async move {
                let pause = world.between(Duration::ZERO, Duration::from_millis(30));
                world.executor.sleep(pause).await;
                world.inject_fault(&FAULTS_OF_DELIVERY);
            };
            self.executor.spawn(&self.outside, fault);
        }
    }

    fn inject_fault(self: &Rc<Self>, faults: &[Fault]) {
        if self.executor.now() >= FAULTY {
            return;
        }
        let host = self.random_host();
        let now = self.executor.now();
        let duration = self.between(Duration::from_millis(5), Duration::from_secs(3));
        let fault = *self.choose(faults).expect("there are faults");
        if fault.is_of_single_primary() && self.chance(60) {
            return;
        }
        self.count(fault.name());
        self.note(|| format!("fault: {} at {} for {duration:?}", fault.name(), host.name));
        match fault {
            Fault::Pause => self.pause(&host, duration),
            Fault::PartitionUp => host.path.blocked_up.set(now + duration),
            Fault::PartitionDown => host.path.blocked_down.set(now + duration),
            Fault::Partition => {
                host.path.blocked_up.set(now + duration);
                host.path.blocked_down.set(now + duration);
            }
            Fault::SlowNetwork => host.path.slow_until.set(now + duration),
            Fault::ResetConnections | Fault::DeadConnections => {
                let mut connections = self.connections.borrow_mut();
                connections.retain(|connection| connection.strong_count() > 0);
                let open = connections.iter().filter_map(std::rc::Weak::upgrade);
                let open = open.filter(|connection| {
                    Rc::ptr_eq(&connection.path, &host.path) && !connection.is_closed_by_client()
                });
                for connection in open.filter(|_| self.chance(60)) {
                    match fault {
                        Fault::ResetConnections => connection.reset(),
                        _ => connection.die(),
                    }
                }
            }
            Fault::Kill => {
                if let Some(process) = host.running() {
                    process.kill();
                    let world = Rc::clone(self);
                    self.executor.call_at(now + duration / 4, move || {
                        Process::start(&world, &host);
                    });
                }
            }
            Fault::SubscriberPanic => {
                if let Some(process) = host.running() {
                    process.subscriber_panic.notify_one();
                }
            }
            Fault::WallClockStep => {
                let step = i64::from(self.below(10_000_000)) - 5_000_000;
                host.wall_offset.set(step);
            }
            Fault::UnknownMessage => self.publish(INVALIDATION_CHANNEL, "unknown"),
            Fault::ForeignInvalidation => {
                self.publish(INVALIDATION_CHANNEL, &store::foreign_invalidation());
            }
            Fault::StoreHang => self.hang_store(duration),
            Fault::StoreRestart => self.restart_store(duration / 3, Duration::ZERO),
            Fault::Failover => {
                let lost = self.between(Duration::ZERO, Duration::from_secs(1));
                self.restart_store(duration / 3, lost);
            }
            Fault::PrimaryCutOff | Fault::PrimaryPaused => {
                if now + MAX_DIVISION < FAULTY {
                    let division = self.division(fault == Fault::PrimaryPaused);
                    self.divide_store(division);
                    // One that resumes just before the primary sends what that executes first.
                    if division.is_paused {
                        let earlier = self.between(Duration::ZERO, Duration::from_millis(800));
                        self.pause(&host, division.writable_for.saturating_sub(earlier));
                    }
                }
            }
        }
    }

    /// Pauses the process of a host, as SIGSTOP and SIGCONT do.
    fn pause(&self, host: &Host, duration: Duration) {
        if let Some(process) = host.running() {
            self.executor.pause(&process.schedule);
            let executor = self.executor.clone();
            let end = self.executor.now() + duration;
            self.executor
                .call_at(end, move || executor.resume(&process.schedule));
        }
    }

    /// Returns the course of a division in which another primary is promoted later than [`MIN_PROMOTION`] after the last response
    /// of a primary, or a lease after one that was cut off rejects writes.
    fn division(&self, is_paused: bool) -> Division {
        let some_time = || self.between(Duration::ZERO, Duration::from_millis(1500));
        let margin = self.between(Duration::ZERO, Duration::from_millis(500));
        let (writable_for, promoted_after) = if is_paused {
            let promoted_after = MIN_PROMOTION + margin;
            // Often long enough for the new primary to have participants that know all others.
            let paused_for = self.between(promoted_after, promoted_after + 2 * LEASE_DURATION);
            (paused_for, promoted_after)
        } else {
            let writable_for = some_time();
            (
                writable_for,
                writable_for + LEASE_DURATION + LEASE_DURATION / 50 + margin,
            )
        };
        Division {
            is_paused,
            writable_for,
            promoted_after,
            demoted_after: some_time(),
        }
    }

    /// Ends every fault that lasts.
    fn heal(self: &Rc<Self>) {
        self.note(|| "faults end".to_owned());
        self.resume_store();
        for host in self.hosts() {
            host.path.blocked_up.set(Duration::ZERO);
            host.path.blocked_down.set(Duration::ZERO);
            host.path.slow_until.set(Duration::ZERO);
            if let Some(process) = host.running() {
                self.executor.resume(&process.schedule);
            }
        }
    }
}

/// Ways in which sessions end by their account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AccountEnd {
    LogoutEverywhere,
    PasswordChange,
    Deletion,
    Disabling,
    AllUsers,
}

impl AccountEnd {
    /// Returns whether a login may succeed at the same time.
    fn permits_logins(self) -> bool {
        !matches!(self, Self::Deletion | Self::Disabling)
    }

    /// Returns the names of acknowledged and of failed ones in the counts.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::LogoutEverywhere => (
                "logouts everywhere acknowledged",
                "logouts everywhere failed",
            ),
            Self::PasswordChange => (
                "changes of passwords acknowledged",
                "changes of passwords refused or failed",
            ),
            Self::Deletion => ("deletions acknowledged", "deletions failed"),
            Self::Disabling => ("disablings acknowledged", "disablings failed"),
            Self::AllUsers => (
                "ends of all sessions of all users acknowledged",
                "ends of all sessions of all users failed",
            ),
        }
    }
}

/// Faults that are injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Pause,
    PartitionUp,
    PartitionDown,
    Partition,
    SlowNetwork,
    ResetConnections,
    DeadConnections,
    Kill,
    SubscriberPanic,
    WallClockStep,
    UnknownMessage,
    ForeignInvalidation,
    StoreHang,
    StoreRestart,
    Failover,
    /// The primary is cut off from its replicas and Sentinels, but not from clients.
    PrimaryCutOff,
    /// The primary is stopped until another one is promoted.
    PrimaryPaused,
}

const FAULTS: [Fault; 17] = [
    Fault::Pause,
    Fault::PartitionUp,
    Fault::PartitionDown,
    Fault::Partition,
    Fault::SlowNetwork,
    Fault::ResetConnections,
    Fault::DeadConnections,
    Fault::Kill,
    Fault::SubscriberPanic,
    Fault::WallClockStep,
    Fault::UnknownMessage,
    Fault::ForeignInvalidation,
    Fault::StoreHang,
    Fault::StoreRestart,
    Fault::Failover,
    Fault::PrimaryCutOff,
    Fault::PrimaryPaused,
];

/// Faults that delay or lose an invalidation at one participant.
const FAULTS_OF_DELIVERY: [Fault; 7] = [
    Fault::Pause,
    Fault::PartitionUp,
    Fault::PartitionDown,
    Fault::Partition,
    Fault::SlowNetwork,
    Fault::ResetConnections,
    Fault::DeadConnections,
];

impl Fault {
    fn is_of_single_primary(self) -> bool {
        matches!(self, Self::StoreHang | Self::StoreRestart | Self::Failover)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Pause => "faults: process paused",
            Self::PartitionUp => "faults: partition towards the store",
            Self::PartitionDown => "faults: partition from the store",
            Self::Partition => "faults: partition in both directions",
            Self::SlowNetwork => "faults: slow network",
            Self::ResetConnections => "faults: connections reset",
            Self::DeadConnections => "faults: connections dead without FIN",
            Self::Kill => "faults: process killed",
            Self::SubscriberPanic => "faults: subscriber panicked",
            Self::WallClockStep => "faults: wall clock stepped",
            Self::UnknownMessage => "faults: unknown message",
            Self::ForeignInvalidation => "faults: invalidation of all sessions by another program",
            Self::StoreHang => "faults: store hung",
            Self::StoreRestart => "faults: store restarted",
            Self::Failover => "faults: failover that lost the last changes",
            Self::PrimaryCutOff => "faults: primary cut off from its replicas",
            Self::PrimaryPaused => "faults: primary paused until it was replaced",
        }
    }
}

async fn inject_faults(world: Rc<World>) {
    while world.executor.now() < FAULTY {
        let pause = world.between(Duration::from_millis(50), Duration::from_millis(1500));
        world.executor.sleep(pause).await;
        world.inject_fault(&FAULTS);
    }
}

/// Client that logs in, has its tokens checked and logs out.
async fn client(world: Rc<World>) {
    /// Number of tokens that a client uses.
    const MAX_TOKENS: usize = 3;
    let mut tokens: Vec<(SessionId, UserId)> = Vec::new();
    let mut ended: Vec<(SessionId, UserId)> = Vec::new();
    while world.executor.now() < FAULTY {
        let pause = world.between(Duration::ZERO, Duration::from_millis(60));
        world.executor.sleep(pause).await;
        if tokens.len() < MAX_TOKENS && world.chance(15) {
            let user = *world.choose(&world.users()).expect("there are users");
            tokens.extend(world.log_in(user).await.map(|session| (session, user)));
            continue;
        }
        let Some((session, user)) = world.choose(&tokens).copied() else {
            continue;
        };
        match world.below(1000) {
            0..40 => {
                tokens.retain(|(other, _)| *other != session);
                ended.push((session, user));
                let logout = world.end(session, user).await;
                // A client that got no response tries again, and some do although they did.
                if !logout || world.chance(30) {
                    world.end(session, user).await;
                }
            }
            40..48 => {
                // Two clients log out at the same time.
                let other = Rc::clone(&world);
                let second = async move {
                    other.end(session, user).await;
                };
                world.executor.spawn(&world.outside, second);
                world.end(session, user).await;
            }
            48..58 => {
                world
                    .end_by_account(user, session, AccountEnd::LogoutEverywhere)
                    .await;
            }
            58..68 => {
                world
                    .end_by_account(user, session, AccountEnd::PasswordChange)
                    .await;
            }
            68 => {
                world
                    .end_by_account(user, session, AccountEnd::Deletion)
                    .await;
            }
            69 => {
                world
                    .end_by_account(user, session, AccountEnd::Disabling)
                    .await;
            }
            70 => {
                world
                    .end_by_account(user, session, AccountEnd::AllUsers)
                    .await;
            }
            71..150 => {
                if let Some((session, user)) = world.choose(&ended).copied() {
                    let host = world.random_host();
                    world.check(&host, session, user).await;
                }
            }
            _ => {
                let host = world.random_host();
                // Several requests of a page.
                for _ in 0..=world.below(3) {
                    let (world, host) = (Rc::clone(&world), Rc::clone(&host));
                    let executor = world.executor.clone();
                    let outside = Rc::clone(&world.outside);
                    executor.spawn(&outside, async move {
                        world.check(&host, session, user).await;
                    });
                }
                world.check(&host, session, user).await;
            }
        }
    }
}

/// Keeps the cache of a host in use while it recovers.
async fn visit(world: Rc<World>, host: Rc<Host>) {
    let user = UserId(0);
    let unknown = world.new_session(user);
    loop {
        world.executor.sleep(Duration::from_millis(100)).await;
        if let Some(process) = host.running() {
            let visited = Rc::clone(&process);
            let visit = async move {
                let _ = visited.cache.get(&unknown, visited.now());
            };
            world.call(&process, visit).await;
        }
    }
}

/// Checks that every participant uses its cache and acknowledges at once in a healthy system.
async fn expect_health(world: Rc<World>) {
    let user = UserId(i64::MAX);
    world
        .accounts
        .borrow_mut()
        .insert(user.0, store::Account::new());
    let Some(session) = world.log_in(user).await else {
        let now = world.executor.now();
        let violation = "no login succeeds after the faults".to_owned();
        return world.history.borrow_mut().violate(now, violation);
    };
    for host in world.hosts() {
        let mut is_cached = false;
        for _ in 0..5 {
            is_cached |= world.check(host, session, user).await;
            world.executor.sleep(Duration::from_millis(20)).await;
        }
        if !is_cached {
            let violation = format!("the cache of {} is not used after the faults", host.name);
            let now = world.executor.now();
            world.history.borrow_mut().violate(now, violation);
        }
    }
    let began = world.executor.now();
    let is_ended = world.end(session, user).await;
    let duration = world.executor.now().saturating_sub(began);
    if !is_ended || duration > HEALTHY_ACKNOWLEDGEMENT {
        let violation = format!("a logout after the faults took {duration:?}: {is_ended}");
        let now = world.executor.now();
        world.history.borrow_mut().violate(now, violation);
    }
    world.count("runs with every cache in use at the end");
}
