//! Processes of the simulation: replicas of auth-api and gateways. The protocol in them is the code of this crate; its
//! connections, and what the programs do around it, follow `redis-connection`, `auth-api/src/sessions/redis.rs`,
//! `auth-api/src/routes/` and `gateway/src/identity/authenticator.rs`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::Variant;
use super::executor::Schedule;
use super::history::{Check, CheckSource};
use super::network::{Connection, Inbound, Path};
use super::store::{Account, Command, Reply, Status};
use super::world::World;
use crate::acknowledgement::{InvalidationTracker, PendingInvalidation};
use crate::cache::{CacheVersion, Invalidate, LeasedCache, LookupSource};
use crate::check_gate::CheckGates;
use crate::generation::{CacheEntry, Owner};
use crate::ids::{SessionId, UserId};
use crate::lease::{HEARTBEAT_INTERVAL, LEASE_DURATION};
use crate::message::{HEARTBEAT_CHANNEL, INVALIDATION_CHANNEL, Message};
use crate::participant::{Participant, Publication, Request};

/// Limits of `redis-connection`.
const COMMAND_TIMEOUT: Duration = Duration::from_millis(1500);
const RECONNECT_DELAY: Duration = Duration::from_millis(200);
const MAX_INTERRUPTION: Duration = Duration::from_secs(3);
const READINESS_INTERVAL: Duration = Duration::from_secs(1);
/// Limits of the two caches.
const REPLICA_ENTRY_LIFETIME: Duration = Duration::from_secs(3);
pub(super) const GATEWAY_ENTRY_LIFETIME: Duration = Duration::from_secs(27);
/// Small enough that generations of the cache change.
const MAX_ENTRIES: usize = 24;
/// Time that a gateway waits for a replica.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_END_ATTEMPTS: u32 = 10;
const MAX_SUPERVISOR_DELAY: Duration = Duration::from_millis(300);

/// Program of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Replica,
    Gateway,
}

/// Machine that runs a process, which may be restarted.
pub(super) struct Host {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) path: Rc<Path>,
    /// Deviation of the wall clock (µs), which is stepped.
    pub(super) wall_offset: Cell<i64>,
    /// Deviation of the rate of the monotonic clock.
    pub(super) clock_rate: f64,
    pub(super) clock_offset: Duration,
    pub(super) process: RefCell<Option<Rc<Process>>>,
}

/// Process of a host.
pub(super) struct Process {
    world: Weak<World>,
    pub(super) host: Rc<Host>,
    pub(super) schedule: Rc<Schedule>,
    pub(super) cache: Arc<LeasedCache<SessionId, i64>>,
    tracker: RefCell<Arc<InvalidationTracker>>,
    commands: Commands,
    gates: CheckGates<SessionId, CheckResult>,
    pub(super) subscriber_connection: RefCell<Option<Rc<Connection>>>,
    /// Times at which heartbeats were sent whose writes are under way on the subscriber's connection, by the ids of these.
    heartbeat_writes: RefCell<BTreeMap<u64, Instant>>,
    /// Makes the subscriber panic.
    pub(super) subscriber_panic: Notify,
    /// Whether the current subscriber has been subscribed before.
    was_subscribed: Cell<bool>,
}

/// Multiplexed connection for commands.
#[derive(Default)]
struct Commands {
    connection: RefCell<Option<Rc<Connection>>>,
    connected: Notify,
    next_id: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, oneshot::Sender<Reply>>>,
    last_response: Cell<Duration>,
    last_success: Cell<Option<Success>>,
    /// Number of the present connection.
    number: Cell<u64>,
}

/// Command that succeeded, as `redis_connection::Success`.
#[derive(Debug, Clone, Copy)]
struct Success {
    sent_at: Duration,
    connection: u64,
}

impl Commands {
    fn record_success(&self, success: Success) {
        let is_later = |last: Success| last.sent_at < success.sent_at;
        if success.connection == self.number.get() && self.last_success.get().is_none_or(is_later) {
            self.last_success.set(Some(success));
        }
    }
}

/// Store or replica that could not be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unavailable;

pub(super) type CheckResult = Result<Check, Unavailable>;

/// Incarnation of the store in which sessions were ended, and time that the acknowledgement took, without that for which
/// the process was paused.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) incarnation: u64,
    pub(super) waited: Duration,
}

/// End of all sessions of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndedByAccount {
    /// Also every gateway has acknowledged it.
    Everywhere,
    /// The session store was unavailable: gateways may use what they remember until its lifetime ends.
    AtReplicas,
}

impl Host {
    fn clock(&self, base: Instant, elapsed: Duration) -> Instant {
        base + self.clock_offset + elapsed.mul_f64(self.clock_rate)
    }

    pub(super) fn running(&self) -> Option<Rc<Process>> {
        self.process.borrow().clone()
    }
}

impl Process {
    /// Starts a process on a host.
    pub(super) fn start(world: &Rc<World>, host: &Rc<Host>) {
        let source = match host.role {
            Role::Gateway if world.variant != Variant::GatewayCachesLikeReplica => {
                LookupSource::CachingReplica
            }
            _ => LookupSource::Store,
        };
        let now = host.clock(world.base, world.executor.now());
        let process = Rc::new(Self {
            world: Rc::downgrade(world),
            host: Rc::clone(host),
            schedule: Rc::default(),
            cache: Arc::new(LeasedCache::new(source, MAX_ENTRIES)),
            tracker: RefCell::new(Arc::new(InvalidationTracker::new(now))),
            commands: Commands::default(),
            gates: CheckGates::default(),
            subscriber_connection: RefCell::default(),
            heartbeat_writes: RefCell::default(),
            subscriber_panic: Notify::new(),
            was_subscribed: Cell::default(),
        });
        host.process.replace(Some(Rc::clone(&process)));
        process.spawn(Rc::clone(&process).keep_connected());
        process.spawn(Rc::clone(&process).keep_subscribed());
        if host.role == Role::Replica {
            process.spawn(Rc::clone(&process).check_readiness());
        }
    }

    /// Kills the process. The kernel closes its connections.
    pub(super) fn kill(&self) {
        let world = self.world();
        world.executor.kill(&self.schedule);
        self.host.process.replace(None);
        for connection in [&self.commands.connection, &self.subscriber_connection] {
            if let Some(connection) = connection.take() {
                connection.close();
            }
        }
    }

    fn world(&self) -> Rc<World> {
        self.world
            .upgrade()
            .expect("the world outlives its processes")
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.world().executor.spawn(&self.schedule, task);
    }

    /// Returns the time of the monotonic clock.
    pub(super) fn now(&self) -> Instant {
        let world = self.world();
        let mut elapsed = world.executor.now();
        if world.variant == Variant::ClockStopsWhilePaused {
            elapsed -= self.schedule.paused_for(elapsed);
        }
        self.host.clock(world.base, elapsed)
    }

    /// Returns the time of the wall clock (µs).
    pub(super) fn wall_time(&self) -> i64 {
        self.world().wall_time() + self.host.wall_offset.get()
    }

    async fn sleep(&self, duration: Duration) {
        let executor = self.world().executor.clone();
        // Rounded up: a timer does not end early.
        let duration = duration.div_f64(self.host.clock_rate) + Duration::from_nanos(1);
        executor.sleep(duration).await;
    }

    /// Lets other tasks and processes run, as a scheduler may at any time.
    async fn preempt(&self) {
        let world = self.world();
        if world.chance(10) {
            let pause = world.between(Duration::ZERO, Duration::from_millis(3));
            world.executor.sleep(pause).await;
        }
    }

    // Connection for commands

    async fn keep_connected(self: Rc<Self>) {
        loop {
            if let Some(connection) = self.connect().await {
                self.commands.number.update(|number| number + 1);
                self.commands.last_success.set(None);
                self.commands
                    .connection
                    .replace(Some(Rc::clone(&connection)));
                self.commands.connected.notify_waiters();
                while let Inbound::Reply(id, reply) = connection.receive().await {
                    self.commands.last_response.set(self.world().executor.now());
                    if let Some(waiting) = self.commands.waiting.borrow_mut().remove(&id) {
                        let _ = waiting.send(reply);
                    }
                }
                connection.close();
                self.commands.connection.replace(None);
                self.commands.waiting.borrow_mut().clear();
            }
            self.sleep(RECONNECT_DELAY).await;
        }
    }

    /// `readiness.rs` of auth-api.
    async fn check_readiness(self: Rc<Self>) {
        loop {
            let _ = self.request(Command::ConfirmPrimary).await;
            self.sleep(READINESS_INTERVAL).await;
        }
    }

    async fn connect(&self) -> Option<Rc<Connection>> {
        let world = self.world();
        let connection = Connection::new(&world, &self.host.path);
        World::send(&connection, 0, Command::Open);
        tokio::select! {
            biased;
            packet = connection.receive() => {
                matches!(packet, Inbound::Reply(..)).then(|| Rc::clone(&connection))
            }
            () = self.sleep(COMMAND_TIMEOUT) => {
                connection.close();
                None
            }
        }
    }

    fn next_id(&self) -> u64 {
        let id = self.commands.next_id.get() + 1;
        self.commands.next_id.set(id);
        id
    }

    /// Sends a command. One that fails may have been executed.
    async fn request(&self, command: Command) -> Result<Reply, Unavailable> {
        let world = self.world();
        let commands = &self.commands;
        let sent_at = world.executor.now();
        let response = async {
            let connection = loop {
                let connection = commands.connection.borrow().clone();
                match connection {
                    Some(connection) => break connection,
                    None => commands.connected.notified().await,
                }
            };
            let id = self.next_id();
            let number = commands.number.get();
            let (sender, reply) = oneshot::channel();
            commands.waiting.borrow_mut().insert(id, sender);
            World::send(&connection, id, command);
            match reply.await {
                Ok(Reply::Rejected) => {
                    // As `RedisConnection::track` does.
                    connection.close();
                    Err(Unavailable)
                }
                Err(_) => Err(Unavailable),
                Ok(reply) => {
                    commands.record_success(Success {
                        sent_at,
                        connection: number,
                    });
                    Ok(reply)
                }
            }
        };
        tokio::select! {
            biased;
            reply = response => reply,
            () = self.sleep(COMMAND_TIMEOUT) => {
                // As `RedisConnection::track` does.
                if commands.last_response.get() < sent_at
                    && let Some(connection) = commands.connection.borrow().as_ref()
                {
                    connection.close();
                }
                Err(Unavailable)
            }
        }
    }

    async fn publish(&self, publication: Publication) -> Result<(), Unavailable> {
        let Publication { channel, message } = publication;
        self.request(Command::Publish { channel, message })
            .await
            .map(drop)
    }

    /// Publishes a message after the store has accepted a write.
    async fn publish_at_primary(&self, publication: Publication) -> Result<(), Unavailable> {
        if self.world().variant != Variant::PublishesWithoutWrite {
            self.request(Command::ConfirmPrimary).await?;
        }
        self.publish(publication).await
    }

    /// Makes a request once more if the store has not responded for a while, or the connection is a new one.
    async fn at_primary<T>(
        &self,
        mut request: impl AsyncFnMut() -> Result<T, Unavailable>,
    ) -> Result<T, Unavailable> {
        let world = self.world();
        let earlier = self.commands.last_success.get();
        let response = request().await?;
        let is_uninterrupted = earlier.is_some_and(|success| {
            world.executor.now() < success.sent_at + MAX_INTERRUPTION
                && success.connection == self.commands.number.get()
        });
        if is_uninterrupted || world.variant == Variant::AsksOnce {
            return Ok(response);
        }
        request().await
    }

    // Subscriber, as `subscriber.rs` connects a participant to Redis

    /// Runs the subscriber and restarts it if it panics.
    async fn keep_subscribed(self: Rc<Self>) {
        loop {
            let cache: Arc<dyn Invalidate> = Arc::<LeasedCache<SessionId, i64>>::clone(&self.cache);
            let tracker = Arc::clone(&self.tracker.borrow());
            self.was_subscribed.set(false);
            let mut participant = Participant::new(cache, tracker);
            tokio::select! {
                biased;
                () = self.subscriber_panic.notified() => {}
                () = self.run_subscriber(&mut participant) => {}
            }
            participant.subscription_lost(self.now());
            if let Some(connection) = self.subscriber_connection.take() {
                connection.close();
            }
            self.heartbeat_writes.borrow_mut().clear();
            let world = self.world();
            let delay = world.between(Duration::ZERO, MAX_SUPERVISOR_DELAY);
            world.executor.sleep(delay).await;
            if self.host.role == Role::Gateway {
                let tracker = InvalidationTracker::new(self.now());
                self.tracker.replace(Arc::new(tracker));
            }
        }
    }

    async fn run_subscriber(self: &Rc<Self>, participant: &mut Participant) {
        let mut next_tick = self.now();
        loop {
            let connection = self.subscriber_connection.borrow().clone();
            let Some(connection) = connection else {
                let connected = self.connect().await;
                let Some(connection) = connected else {
                    self.sleep(RECONNECT_DELAY).await;
                    continue;
                };
                self.subscriber_connection.replace(Some(connection));
                self.lose_subscription(participant);
                self.subscribe(participant).await;
                continue;
            };
            let until_tick = next_tick.saturating_duration_since(self.now());
            tokio::select! {
                biased;
                packet = connection.receive() => {
                    self.preempt().await;
                    self.handle(participant, packet);
                }
                () = self.sleep(until_tick) => {
                    next_tick = self.now() + HEARTBEAT_INTERVAL;
                    self.maintain(participant).await;
                }
            }
        }
    }

    async fn subscribe(self: &Rc<Self>, participant: &mut Participant) {
        let connection = self.subscriber_connection.borrow().clone();
        let Some(connection) = connection else {
            return;
        };
        let world = self.world();
        let channels = participant.channels().to_vec();
        World::send(&connection, 0, Command::Subscribe(channels));
        let mut early = Vec::new();
        let confirmed = async {
            loop {
                match connection.receive().await {
                    Inbound::Reply(0, _) => return true,
                    Inbound::Closed => {
                        early.push(Inbound::Closed);
                        return false;
                    }
                    // They are in another buffer than the reply.
                    packet => early.push(packet),
                }
            }
        };
        let is_confirmed = tokio::select! {
            biased;
            is_confirmed = confirmed => is_confirmed,
            () = self.sleep(COMMAND_TIMEOUT) => false,
        };
        if is_confirmed {
            self.preempt().await;
            let is_silent = world.variant == Variant::ResubscribesSilently;
            if !(self.was_subscribed.replace(true) && is_silent) {
                participant.subscribed(self.now());
            }
            if world.variant == Variant::WaitsForKnownParticipantsOnly {
                let now = self.now();
                let past = now.checked_sub(LEASE_DURATION).unwrap_or(now);
                self.tracker.borrow().subscription_started(past);
            }
        } else {
            // As the library does with a connection that does not respond (`unresponsive.max_timeout`).
            connection.close();
        }
        for packet in early {
            self.handle(participant, packet);
        }
    }

    fn lose_subscription(&self, participant: &mut Participant) {
        if self.world().variant != Variant::ResubscribesSilently {
            participant.subscription_lost(self.now());
        }
    }

    fn handle(self: &Rc<Self>, participant: &mut Participant, packet: Inbound) {
        let world = self.world();
        match packet {
            Inbound::Message { channel, text } => {
                world.count("messages received");
                let text = self.alter(&channel, text);
                let received_at = self.receipt(&channel, &text);
                let acknowledgement = participant.receive(&channel, &text, || received_at);
                if let Some(Publication { channel, message }) = acknowledgement
                    && let Some(connection) = self.subscriber_connection.borrow().as_ref()
                {
                    let id = self.next_id();
                    World::send(connection, id, Command::Publish { channel, message });
                }
            }
            Inbound::Lagged => {
                world.count("messages lost in full buffers");
                if world.variant != Variant::IgnoresLostMessages {
                    participant.messages_lost(self.now());
                }
            }
            Inbound::Closed => {
                self.subscriber_connection.replace(None);
                self.heartbeat_writes.borrow_mut().clear();
                self.lose_subscription(participant);
            }
            Inbound::Reply(id, reply) => {
                let Some(sent) = self.heartbeat_writes.borrow_mut().remove(&id) else {
                    return;
                };
                match reply {
                    Reply::Rejected => {
                        if let Some(connection) = self.subscriber_connection.borrow().as_ref() {
                            connection.close();
                        }
                    }
                    _ if world.variant == Variant::LeaseFromReceipt => {
                        self.cache.primary_confirmed(self.now());
                    }
                    _ => self.cache.primary_confirmed(sent),
                }
            }
        }
    }

    /// Sends a write and a heartbeat on the subscriber's connection.
    fn send_heartbeat(self: &Rc<Self>, sent: Instant, publication: Publication) {
        let Publication { channel, message } = publication;
        let publish = Command::Publish { channel, message };
        let variant = self.world().variant;
        if matches!(
            variant,
            Variant::PublishesWithoutWrite | Variant::HeartbeatsOnOtherConnection
        ) {
            let process = Rc::clone(self);
            return self.spawn(async move {
                if variant == Variant::PublishesWithoutWrite
                    || process.request(Command::ConfirmPrimary).await.is_ok()
                {
                    process.cache.primary_confirmed(sent);
                    let _ = process.request(publish).await;
                }
            });
        }
        if let Some(connection) = self.subscriber_connection.borrow().as_ref() {
            let id = self.next_id();
            self.heartbeat_writes.borrow_mut().insert(id, sent);
            World::send(connection, id, Command::ConfirmPrimary);
            World::send(connection, self.next_id(), publish);
        }
    }

    async fn maintain(self: &Rc<Self>, participant: &mut Participant) {
        match participant.tick(self.now()) {
            Some(Request::Subscribe) => self.subscribe(participant).await,
            Some(Request::Reconnect) => {
                if let Some(connection) = self.subscriber_connection.borrow().as_ref() {
                    connection.close();
                }
            }
            Some(Request::Heartbeat { sent, publication }) => {
                self.send_heartbeat(sent, publication);
            }
            None => {}
        }
    }

    /// Replaces the time in an own heartbeat by that of its receipt, for the variant that counts from there.
    fn alter(&self, channel: &str, text: String) -> String {
        let tracker = self.tracker.borrow();
        let own = tracker.participant.channel();
        let is_own = channel == HEARTBEAT_CHANNEL && text.starts_with(&own);
        if !is_own || self.world().variant != Variant::LeaseFromReceipt {
            return text;
        }
        let now = self.now() - tracker.epoch;
        format!("{own} {}", now.as_nanos())
    }

    /// Returns the time of a message's receipt, which is that of its sending for the variant that trusts the first heartbeat
    /// after an interruption.
    fn receipt(&self, channel: &str, text: &str) -> Instant {
        let tracker = self.tracker.borrow();
        if self.world().variant == Variant::TrustsFirstHeartbeat
            && let Some(Message::Heartbeat { sender, sent }) = Message::parse(channel, text)
            && sender == tracker.participant
        {
            return tracker.epoch + sent;
        }
        self.now()
    }

    // Checks

    /// Checks a token at this process.
    pub(super) async fn check(self: &Rc<Self>, session: SessionId, user: UserId) -> CheckResult {
        match self.host.role {
            Role::Replica => self.check_at_replica(session, user).await,
            Role::Gateway => self.check_at_gateway(session, user).await,
        }
    }

    async fn get(&self, session: SessionId) -> Result<i64, CacheVersion> {
        let now = self.now();
        self.preempt().await;
        self.cache.get(&session, now)
    }

    async fn insert(&self, owner: Owner, value: i64, lifetime: Duration, version: CacheVersion) {
        let version = if self.world().variant == Variant::NoVersionCheck {
            self.cache
                .get(&owner.session, self.now())
                .err()
                .unwrap_or(version)
        } else {
            version
        };
        self.preempt().await;
        let expires_at = self.now() + lifetime;
        let entry = CacheEntry {
            owner,
            value,
            expires_at,
        };
        self.cache.insert(owner.session, entry, version);
    }

    /// `Authenticated::find` of auth-api.
    async fn check_at_replica(&self, session: SessionId, user: UserId) -> CheckResult {
        let (auth_time, source) = match self.get(session).await {
            Ok(auth_time) => (auth_time, CheckSource::ReplicaCache),
            Err(version) => {
                self.preempt().await;
                let check = async || self.request(Command::Check { session, user }).await;
                let reply = self.at_primary(check).await?;
                let Reply::AuthTime(Some(auth_time)) = reply else {
                    return Ok(Check::Rejected);
                };
                self.preempt().await;
                let owner = Owner { user, session };
                self.insert(owner, auth_time, REPLICA_ENTRY_LIFETIME, version)
                    .await;
                (auth_time, CheckSource::Store)
            }
        };
        let account = self.account(user, |account| *account).await;
        if account.permits(auth_time) {
            return Ok(Check::Accepted(source));
        }
        self.invalidate(session).await?;
        Ok(Check::Rejected)
    }

    /// `Authenticator::check` of the gateway.
    async fn check_at_gateway(self: &Rc<Self>, session: SessionId, user: UserId) -> CheckResult {
        if self.get(session).await.is_ok() {
            return Ok(Check::Accepted(CheckSource::GatewayCache));
        }
        self.preempt().await;
        let check = async {
            let Err(version) = self.get(session).await else {
                return Ok(Check::Accepted(CheckSource::GatewayCache));
            };
            self.preempt().await;
            let verified = self.verify(session, user).await?;
            if verified == Check::Rejected {
                return Ok(verified);
            }
            let owner = Owner { user, session };
            self.insert(owner, 0, GATEWAY_ENTRY_LIFETIME, version).await;
            Ok(Check::Accepted(CheckSource::Verified))
        };
        let world = self.world();
        if world.variant == Variant::GateSharesChecksUnderWay {
            // Each request counts as arrived at the beginning of time.
            return self.gates.pass(session, || world.base, check).await;
        }
        self.gates.pass(session, || self.now(), check).await
    }

    /// Asks a replica, `GET /api/verify`.
    async fn verify(&self, session: SessionId, user: UserId) -> CheckResult {
        let world = self.world();
        let replicas: Vec<_> = world
            .hosts()
            .iter()
            .filter(|host| host.role == Role::Replica)
            .filter_map(|host| host.running())
            .collect();
        let Some(replica) = world.choose(&replicas) else {
            return Err(Unavailable);
        };
        let exchange = async {
            let way = world.delay(false);
            world.executor.sleep(way).await;
            let (sender, response) = oneshot::channel();
            let asked = Rc::clone(replica);
            replica.spawn(async move {
                let _ = sender.send(asked.check_at_replica(session, user).await);
            });
            let result = response.await.map_err(|_| Unavailable)?;
            let way = world.delay(world.chance(10));
            world.executor.sleep(way).await;
            result
        };
        tokio::select! {
            biased;
            result = exchange => result,
            () = self.sleep(VERIFY_TIMEOUT) => Err(Unavailable),
        }
    }

    /// Runs a statement on the row of an account.
    pub(super) async fn account<T>(
        &self,
        user: UserId,
        statement: impl FnOnce(&mut Account) -> T,
    ) -> T {
        let world = self.world();
        world.executor.sleep(world.delay(false)).await;
        let result = statement(
            world
                .accounts
                .borrow_mut()
                .get_mut(&user.0)
                .expect("a user"),
        );
        world.executor.sleep(world.delay(false)).await;
        result
    }

    // Sessions, `auth-api/src/sessions/redis.rs`

    async fn acknowledged(&self, invalidation: PendingInvalidation<'_>) -> Duration {
        let world = self.world();
        if world.variant == Variant::NoWait {
            return Duration::ZERO;
        }
        let (began, paused) = (
            world.executor.now(),
            self.schedule.paused_for(world.executor.now()),
        );
        invalidation
            .acknowledged_before(self.sleep(LEASE_DURATION))
            .await;
        let now = world.executor.now();
        let paused_meanwhile = self.schedule.paused_for(now).saturating_sub(paused);
        now.saturating_sub(began).saturating_sub(paused_meanwhile)
    }

    /// Makes every cache forget a session that its account refuses.
    async fn invalidate(&self, session: SessionId) -> Result<(), Unavailable> {
        let tracker = Arc::clone(&self.tracker.borrow());
        let publish = async || {
            let invalidation = tracker.begin();
            let publication = Publication {
                channel: INVALIDATION_CHANNEL.to_owned(),
                message: format!("{} {session}", invalidation.header()),
            };
            self.publish_at_primary(publication).await?;
            Ok(invalidation)
        };
        let invalidation = self.at_primary(publish).await?;
        self.cache.invalidate_session(session, self.now());
        self.acknowledged(invalidation).await;
        Ok(())
    }

    /// Ends a session.
    pub(super) async fn end(&self, session: SessionId, user: UserId) -> Result<Ended, Unavailable> {
        let tracker = Arc::clone(&self.tracker.borrow());
        let end = async || {
            let invalidation = tracker.begin();
            let command = Command::End {
                session,
                user,
                header: invalidation.header(),
            };
            Ok((self.request(command).await?, invalidation))
        };
        let (Reply::Ended { incarnation, .. }, invalidation) = self.at_primary(end).await? else {
            return Err(Unavailable);
        };
        self.preempt().await;
        self.cache.invalidate_session(session, self.now());
        Ok(Ended {
            incarnation,
            waited: self.acknowledged(invalidation).await,
        })
    }

    async fn end_all(
        &self,
        user: UserId,
        kept: Option<(SessionId, i64)>,
    ) -> Result<Ended, Unavailable> {
        let tracker = Arc::clone(&self.tracker.borrow());
        for _ in 0..MAX_END_ATTEMPTS {
            let invalidation = tracker.begin();
            let Reply::Index(mut sessions) = self.request(Command::Index(user)).await? else {
                return Err(Unavailable);
            };
            sessions.retain(|session| Some(*session) != kept.map(|(session, _)| session));
            let command = Command::EndAll {
                user,
                sessions,
                kept,
                header: invalidation.header(),
            };
            let Reply::Ended {
                incarnation,
                others,
            } = self.request(command).await?
            else {
                return Err(Unavailable);
            };
            self.cache.invalidate_user(user, self.now());
            if others == 0 {
                return Ok(Ended {
                    incarnation,
                    waited: self.acknowledged(invalidation).await,
                });
            }
        }
        Err(Unavailable)
    }

    // Endpoints, `auth-api/src/routes/`

    /// Creates a session. Returns its id and `auth_time` unless the account has changed.
    pub(super) async fn log_in(
        &self,
        user: UserId,
        session: SessionId,
    ) -> Result<bool, Unavailable> {
        let account = self.account(user, |account| *account).await;
        if account.status != Status::Active {
            return Ok(false);
        }
        let auth_time = account.next_auth_time(self.wall_time());
        let create = Command::Create {
            session,
            user,
            auth_time,
        };
        self.request(create).await?;
        let variant = self.world().variant;
        let record = |current: &mut Account| current.record_login(&account, auth_time, variant);
        if self.account(user, record).await {
            return Ok(true);
        }
        self.end(session, user).await?;
        Ok(false)
    }

    pub(super) async fn log_out_everywhere(
        &self,
        user: UserId,
    ) -> Result<EndedByAccount, Unavailable> {
        let (now, variant) = (self.wall_time(), self.world().variant);
        self.account(user, |account| account.end_sessions(now, variant))
            .await;
        self.end_all(user, None).await?;
        Ok(EndedByAccount::Everywhere)
    }

    /// Changes the password in the session `kept`.
    pub(super) async fn change_password(
        &self,
        user: UserId,
        kept: SessionId,
    ) -> Result<Option<EndedByAccount>, Unavailable> {
        if !matches!(self.check_at_replica(kept, user).await?, Check::Accepted(_)) {
            return Ok(None);
        }
        let account = self.account(user, |account| *account).await;
        let variant = self.world().variant;
        let auth_time = account.next_auth_time(self.wall_time());
        self.end_all(user, Some((kept, auth_time))).await?;
        let change = |current: &mut Account| {
            (current.password == account.password && current.status != Status::Deleted).then(|| {
                current.password += 1;
                current.end_sessions(auth_time - 1, variant);
                *current
            })
        };
        let Some(changed) = self.account(user, change).await else {
            return Ok(None);
        };
        let last_auth_time = auth_time.max(changed.kept_auth_time());
        match self.end_all(user, Some((kept, last_auth_time))).await {
            Err(error) if last_auth_time != auth_time => Err(error),
            // The first end was acknowledged, before which the sessions had begun.
            _ => Ok(Some(EndedByAccount::Everywhere)),
        }
    }

    pub(super) async fn delete(&self, user: UserId) -> Result<EndedByAccount, Unavailable> {
        self.end_all(user, None).await?;
        let delete = |account: &mut Account| account.status = Status::Deleted;
        self.account(user, delete).await;
        self.end_all(user, None).await?;
        Ok(EndedByAccount::Everywhere)
    }

    /// `auth-api user disable`.
    pub(super) async fn disable(&self, user: UserId) -> EndedByAccount {
        let (now, variant) = (self.wall_time(), self.world().variant);
        let disable = |account: &mut Account| {
            if account.status == Status::Active {
                account.status = Status::Disabled;
            }
            account.end_sessions(now, variant);
        };
        self.account(user, disable).await;
        match self.end_all(user, None).await {
            Ok(_) => EndedByAccount::Everywhere,
            Err(Unavailable) => EndedByAccount::AtReplicas,
        }
    }

    /// `auth-api user end-all-sessions`.
    pub(super) async fn end_all_sessions(&self, users: &[UserId]) -> EndedByAccount {
        for user in users {
            let (now, variant) = (self.wall_time(), self.world().variant);
            self.account(*user, |account| account.end_sessions(now, variant))
                .await;
        }
        let tracker = Arc::clone(&self.tracker.borrow());
        let publish = async || {
            let invalidation = tracker.begin();
            let publication = Publication {
                channel: INVALIDATION_CHANNEL.to_owned(),
                message: format!("{} user:*", invalidation.header()),
            };
            self.publish_at_primary(publication).await?;
            Ok(invalidation)
        };
        match self.at_primary(publish).await {
            Ok(invalidation) => {
                self.acknowledged(invalidation).await;
                EndedByAccount::Everywhere
            }
            Err(Unavailable) => EndedByAccount::AtReplicas,
        }
    }
}
