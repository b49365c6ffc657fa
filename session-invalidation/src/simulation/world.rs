//! What a run consists of: hosts with processes, the store, the accounts, time and chance.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use super::Variant;
use super::executor::{Executor, Schedule};
use super::history::History;
use super::network::Connection;
use super::process::{Host, Process, Role};
use super::store::{Account, Store};
use crate::ids::{SessionId, UserId};

/// Deviation of the rates of clocks: two of them differ by less than the margin of a lease, 1 %.
const MAX_CLOCK_DEVIATION: f64 = 0.0045;
/// Wall time at the beginning (µs).
const WALL_EPOCH: i64 = 1_000_000_000;

/// World of a run.
pub(super) struct World {
    pub(super) executor: Executor,
    random: RefCell<fastrand::Rng>,
    pub(super) variant: Variant,
    /// Origin of monotonic clocks.
    pub(super) base: Instant,
    /// Messages that may wait for a subscriber.
    pub(super) buffer_messages: usize,
    /// Primary.
    pub(super) store: Rc<RefCell<Store>>,
    /// Primary that was replaced and does not know it yet.
    pub(super) former: RefCell<Option<Rc<RefCell<Store>>>>,
    pub(super) last_incarnation: Cell<u64>,
    pub(super) connections: RefCell<Vec<Weak<Connection>>>,
    pub(super) accounts: RefCell<BTreeMap<i64, Account>>,
    pub(super) history: RefCell<History>,
    /// Schedule of clients and faults, which never stop.
    pub(super) outside: Rc<Schedule>,
    hosts: OnceCell<Vec<Rc<Host>>>,
    next_session: Cell<u128>,
}

impl World {
    /// Creates a world whose course `seed` determines, with its processes started.
    pub(super) fn new(seed: u64, variant: Variant, history: History) -> Rc<Self> {
        let mut random = fastrand::Rng::with_seed(seed);
        let users = random.i64(2..=4);
        let (replicas, gateways) = (random.usize(2..=3), random.usize(1..=3));
        let buffer_messages = random.usize(8..=100);
        let world = Rc::new(Self {
            executor: Executor::default(),
            random: RefCell::new(random),
            variant,
            base: Instant::now(),
            buffer_messages,
            store: Rc::default(),
            former: RefCell::default(),
            last_incarnation: Cell::default(),
            connections: RefCell::default(),
            accounts: RefCell::new((1..=users).map(|id| (id, Account::new())).collect()),
            history: RefCell::new(history),
            outside: Rc::default(),
            hosts: OnceCell::new(),
            next_session: Cell::new(1),
        });
        let replicas = (0..replicas).map(|number| (format!("replica {number}"), Role::Replica));
        let gateways = (0..gateways).map(|number| (format!("gateway {number}"), Role::Gateway));
        let hosts = replicas
            .chain(gateways)
            .map(|(name, role)| world.host(name, role));
        let hosts: Vec<_> = hosts.collect();
        let hosts = world.hosts.get_or_init(|| hosts);
        for host in hosts {
            Process::start(&world, host);
        }
        world
    }

    fn host(&self, name: String, role: Role) -> Rc<Host> {
        let mut random = self.random.borrow_mut();
        let deviation = match self.variant {
            Variant::ClocksDeviateFurther => 10.0 * MAX_CLOCK_DEVIATION,
            _ => MAX_CLOCK_DEVIATION,
        };
        Rc::new(Host {
            name,
            role,
            path: Rc::default(),
            wall_offset: Cell::new(random.i64(-2_000_000..=2_000_000)),
            clock_rate: 1.0 + (2.0 * random.f64() - 1.0) * deviation,
            clock_offset: Duration::from_millis(random.u64(0..100_000)),
            process: RefCell::default(),
        })
    }

    pub(super) fn hosts(&self) -> &[Rc<Host>] {
        self.hosts.get().map_or(&[], Vec::as_slice)
    }

    pub(super) fn users(&self) -> Vec<UserId> {
        self.accounts.borrow().keys().copied().map(UserId).collect()
    }

    pub(super) fn new_session(&self, user: UserId) -> SessionId {
        let number = self.next_session.get();
        self.next_session.set(number + 1);
        let session = SessionId::from_bytes(number.to_be_bytes());
        self.history.borrow_mut().created(session, user);
        session
    }

    /// Returns the wall time of a correct clock (µs).
    pub(super) fn wall_time(&self) -> i64 {
        let micros = self.executor.now().as_micros();
        WALL_EPOCH + i64::try_from(micros).expect("a run is short")
    }

    pub(super) fn note(&self, text: impl FnOnce() -> String) {
        self.history.borrow_mut().note(self.executor.now(), text);
    }

    pub(super) fn count(&self, name: &'static str) {
        self.history.borrow_mut().count(name);
    }

    // Chance

    pub(super) fn chance(&self, percent: u32) -> bool {
        self.random.borrow_mut().u32(0..100) < percent
    }

    pub(super) fn below(&self, end: u32) -> u32 {
        self.random.borrow_mut().u32(0..end)
    }

    /// Returns a duration up to `max`, of which short ones are likelier.
    pub(super) fn between(&self, min: Duration, max: Duration) -> Duration {
        let fraction = self.random.borrow_mut().f64();
        min + max.saturating_sub(min).mul_f64(fraction * fraction)
    }

    /// Returns the time that a packet takes.
    pub(super) fn delay(&self, is_slow: bool) -> Duration {
        let max = if is_slow {
            Duration::from_millis(500)
        } else if self.chance(3) {
            Duration::from_millis(20)
        } else {
            Duration::from_micros(500)
        };
        self.between(Duration::from_micros(20), max)
    }

    pub(super) fn choose<'c, T>(&self, choices: &'c [T]) -> Option<&'c T> {
        self.random.borrow_mut().choice(choices)
    }

    /// Ends what refers to the world.
    pub(super) fn tear_down(&self) {
        self.executor.clear();
        for host in self.hosts() {
            host.process.replace(None);
        }
    }
}
