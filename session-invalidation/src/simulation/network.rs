//! Network between a process and the store: connections that deliver in order, however long it takes.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::Variant;
use super::store::Reply;
use super::world::World;

/// Path between a host and the store.
#[derive(Default)]
pub(super) struct Path {
    /// Time up to which no packet passes in a direction. TCP sends them again, so they arrive afterwards.
    pub(super) blocked_up: Cell<Duration>,
    pub(super) blocked_down: Cell<Duration>,
    /// Time up to which packets take long.
    pub(super) slow_until: Cell<Duration>,
}

/// Direction of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// To the store.
    Up,
    /// To the process.
    Down,
}

/// Packet that has arrived at a process.
#[derive(Debug)]
pub(super) enum Inbound {
    Reply(u64, Reply),
    Message {
        channel: String,
        text: String,
    },
    /// The connection was closed.
    Closed,
    /// Messages were dropped, since too many had waited.
    Lagged,
}

/// Connection to the store.
pub(super) struct Connection {
    world: Weak<World>,
    pub(super) path: Rc<Path>,
    /// Incarnation of the store that has it open.
    pub(super) incarnation: Cell<Option<u64>>,
    pub(super) channels: RefCell<Vec<String>>,
    /// Nothing arrives any more, and neither end knows.
    is_dead: Cell<bool>,
    is_closed_by_client: Cell<bool>,
    last_up: Cell<Duration>,
    last_down: Cell<Duration>,
    inbox: RefCell<VecDeque<Inbound>>,
    arrived: Notify,
}

impl Path {
    /// Returns the time at which a packet arrives.
    fn arrival(&self, world: &World, direction: Direction) -> Duration {
        let now = world.executor.now();
        let blocked = match direction {
            Direction::Up => self.blocked_up.get(),
            Direction::Down => self.blocked_down.get(),
        };
        now.max(blocked) + world.delay(now < self.slow_until.get())
    }
}

impl Connection {
    pub(super) fn new(world: &Rc<World>, path: &Rc<Path>) -> Rc<Self> {
        let connection = Rc::new(Self {
            world: Rc::downgrade(world),
            path: Rc::clone(path),
            incarnation: Cell::default(),
            channels: RefCell::default(),
            is_dead: Cell::default(),
            is_closed_by_client: Cell::default(),
            last_up: Cell::default(),
            last_down: Cell::default(),
            inbox: RefCell::default(),
            arrived: Notify::new(),
        });
        world
            .connections
            .borrow_mut()
            .push(Rc::downgrade(&connection));
        connection
    }

    /// Calls `arrived` when what is sent now arrives, in the order of sending unless the variant reorders.
    pub(super) fn transmit(
        &self,
        direction: Direction,
        arrived: impl FnOnce(&Rc<World>) + 'static,
    ) {
        let Some(world) = self.world.upgrade() else {
            return;
        };
        if self.is_dead.get() {
            return;
        }
        let last = match direction {
            Direction::Up => &self.last_up,
            Direction::Down => &self.last_down,
        };
        let mut at = self.path.arrival(&world, direction);
        if direction == Direction::Up || world.variant != Variant::ReordersMessages {
            at = at.max(last.get());
            last.set(at);
        }
        let weak = Rc::downgrade(&world);
        world.executor.call_at(at, move || {
            if let Some(world) = weak.upgrade() {
                arrived(&world);
            }
        });
    }

    /// Sends a packet to the process.
    pub(super) fn deliver(self: &Rc<Self>, packet: Inbound) {
        let connection = Rc::clone(self);
        self.transmit(Direction::Down, move |world| {
            connection.push(packet, world.buffer_messages);
        });
    }

    fn push(&self, packet: Inbound, buffer_messages: usize) {
        if self.is_dead.get() || self.is_closed_by_client.get() {
            return;
        }
        let mut inbox = self.inbox.borrow_mut();
        inbox.push_back(packet);
        if inbox.len() > buffer_messages
            && let Some(oldest) = inbox
                .iter()
                .position(|packet| matches!(packet, Inbound::Message { .. }))
        {
            inbox.remove(oldest);
            if !matches!(inbox.front(), Some(Inbound::Lagged)) {
                inbox.push_front(Inbound::Lagged);
            }
        }
        drop(inbox);
        self.arrived.notify_one();
    }

    /// Waits for the next packet.
    pub(super) async fn receive(&self) -> Inbound {
        loop {
            if let Some(packet) = self.inbox.borrow_mut().pop_front() {
                return packet;
            }
            self.arrived.notified().await;
        }
    }

    pub(super) fn is_open_at(&self, incarnation: u64) -> bool {
        self.incarnation.get() == Some(incarnation)
    }

    pub(super) fn is_closed_by_client(&self) -> bool {
        self.is_closed_by_client.get()
    }

    /// Closes the connection from the side of the process, which notices at once.
    pub(super) fn close(self: &Rc<Self>) {
        if !self.is_closed_by_client.replace(true) {
            self.inbox.borrow_mut().clear();
            self.inbox.borrow_mut().push_back(Inbound::Closed);
            self.arrived.notify_one();
            let connection = Rc::clone(self);
            self.transmit(Direction::Up, move |_| connection.incarnation.set(None));
        }
    }

    /// Closes the connection from the side of the store or of the network.
    pub(super) fn reset(self: &Rc<Self>) {
        self.incarnation.set(None);
        self.deliver(Inbound::Closed);
    }

    /// Drops everything from now on without an end noticing.
    pub(super) fn die(&self) {
        self.is_dead.set(true);
    }
}
