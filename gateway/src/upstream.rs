//! The replicas: which there are, which are well, and which one gets a request.

pub(crate) mod connection;
pub(crate) mod discovery;
mod health;
mod pool;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pingora::ErrorType;
use pingora::connectors::TransportConnector;
use pingora::protocols::l4::ext::TcpKeepalive;
use pingora::upstreams::peer::HttpPeer;
use thiserror::Error;

use crate::config::{Scheme, Server, Strategy};
use crate::features::circuit_breaker::Permission;
use crate::metrics::{Metrics, ReplicaMetrics};
use crate::moment::Moment;
use connection::Connection;
use health::Probes;
use pool::Pool;

/// One address that answers requests.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) address: SocketAddr,
    pub(crate) server: Server,
    peer: HttpPeer,
    idle: Pool,
    in_flight: AtomicUsize,
    condition: AtomicU8,
    probes: Mutex<Probes>,
    pub(crate) metrics: ReplicaMetrics,
}

/// How a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Never probed yet: used where nothing better is there.
    Unknown,
    Up,
    Down,
}

impl Replica {
    fn new(address: SocketAddr, server: &Server, metrics: ReplicaMetrics) -> Self {
        let tls = server.scheme == Scheme::Https;
        let mut peer = HttpPeer::new(address, tls, server.host.clone());
        peer.options.tcp_keepalive = Some(TcpKeepalive {
            idle: Duration::from_secs(30),
            interval: Duration::from_secs(10),
            count: 3,
            user_timeout: Duration::ZERO,
        });
        Self {
            address,
            server: server.clone(),
            peer,
            idle: Pool::new(),
            in_flight: AtomicUsize::new(0),
            condition: AtomicU8::new(Condition::Unknown as u8),
            probes: Mutex::default(),
            metrics,
        }
    }

    /// Where and how Pingora connects, with so much patience.
    fn peer(&self, patience: Duration) -> HttpPeer {
        let mut peer = self.peer.clone();
        peer.options.connection_timeout = Some(patience);
        peer.options.total_connection_timeout = Some(patience);
        peer
    }

    /// A connection for one exchange.
    async fn connect(
        &self,
        connector: &TransportConnector,
        wanted: Wanted,
        patience: Duration,
    ) -> Result<Connection, NotConnected> {
        if wanted == Wanted::Any
            && let Some(connection) = self.idle.take()
        {
            return Ok(connection);
        }
        let peer = self.peer(patience);
        // What is rare waits in a box of its own.
        match Box::pin(connector.new_stream(&peer)).await {
            Ok(stream) => Ok(Connection::new(stream)),
            Err(error) => Err(NotConnected::from(error.etype())),
        }
    }

    /// Keeps a connection for the next exchange.
    pub(crate) fn keep(&self, connection: Connection, now: Moment) {
        self.idle.put(connection, now);
    }

    pub(crate) fn condition(&self) -> Condition {
        match self.condition.load(Ordering::Relaxed) {
            up if up == Condition::Up as u8 => Condition::Up,
            down if down == Condition::Down as u8 => Condition::Down,
            _ => Condition::Unknown,
        }
    }

    fn set(&self, condition: Condition, reason: &str) {
        let before = self.condition.swap(condition as u8, Ordering::Relaxed);
        self.metrics.up.set(i64::from(condition == Condition::Up));
        if before == condition as u8 {
            return;
        }
        let replica = self.address;
        if condition == Condition::Down {
            tracing::warn!(%replica, reason, "replica is out");
        } else {
            tracing::info!(%replica, reason, "replica is in");
        }
    }

    /// A request could not be connected: no further one goes there until a probe does.
    pub(crate) fn failed_to_connect(&self) {
        self.metrics.connect_failures.inc();
        self.set(Condition::Down, "a connection to it failed");
        self.probes.lock().start_over();
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// A request that a replica has, until this is dropped.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Replica>);

impl InFlight {
    fn new(replica: &Arc<Replica>) -> Self {
        replica.in_flight.fetch_add(1, Ordering::Relaxed);
        replica.metrics.in_flight.inc();
        Self(Arc::clone(replica))
    }

    pub(crate) fn replica(&self) -> &Replica {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.in_flight.dec();
    }
}

/// Which connection an exchange can do with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// An idle one, or else a new one.
    Any,
    New,
}

/// A replica that could not be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum NotConnected {
    #[error("it took too long")]
    TimedOut,
    #[error("it was refused, or nobody is there")]
    Failed,
    /// We have none: too many files are open, or all ports are in use.
    #[error("there is no socket for it")]
    NoSocket,
}

impl From<&ErrorType> for NotConnected {
    fn from(error: &ErrorType) -> Self {
        match error {
            ErrorType::ConnectTimedout => Self::TimedOut,
            ErrorType::SocketError | ErrorType::BindError | ErrorType::InternalError => {
                Self::NoSocket
            }
            _ => Self::Failed,
        }
    }
}

/// No replica can take a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoReplica {
    /// When it is worth trying again.
    pub(crate) retry_after: Duration,
}

/// All replicas.
pub(crate) struct Upstreams {
    replicas: ArcSwap<Vec<Arc<Replica>>>,
    next: AtomicUsize,
    connector: TransportConnector,
    metrics: Arc<Metrics>,
}

impl Upstreams {
    pub(crate) fn new(metrics: &Arc<Metrics>) -> Self {
        Self {
            replicas: ArcSwap::default(),
            next: AtomicUsize::new(0),
            connector: TransportConnector::new(None),
            metrics: Arc::clone(metrics),
        }
    }

    pub(crate) fn all(&self) -> Arc<Vec<Arc<Replica>>> {
        self.replicas.load_full()
    }

    /// A connection to a replica, within `patience`.
    ///
    /// # Errors
    /// When there is none to be had.
    pub(crate) async fn connect(
        &self,
        replica: &Replica,
        wanted: Wanted,
        patience: Duration,
    ) -> Result<Connection, NotConnected> {
        let connected = replica.connect(&self.connector, wanted, patience).await;
        if let Err(NotConnected::NoSocket) = connected {
            // What other replicas keep for later is needed now.
            for replica in self.all().iter() {
                replica.idle.clear();
            }
            return replica
                .connect(&self.connector, Wanted::New, patience)
                .await;
        }
        connected
    }

    /// Picks a replica that is well, that was not `tried` before if there is another one, and that
    /// `permits` lets this request go to.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn choose(
        &self,
        strategy: Strategy,
        tried: Option<SocketAddr>,
        permits: impl Fn(&Replica) -> Permission,
    ) -> Result<InFlight, NoReplica> {
        let replicas = self.replicas.load();
        let usable = Usable::of(&replicas, tried, &permits)?;
        let count = usable.count;
        let replica = match strategy {
            Strategy::RoundRobin => usable.nth(self.next.fetch_add(1, Ordering::Relaxed) % count),
            Strategy::Random => usable.nth(fastrand::usize(..count)),
            Strategy::LeastRequests => {
                let one = usable.nth(fastrand::usize(..count));
                let other = usable.nth(fastrand::usize(..count));
                if other.in_flight() < one.in_flight() {
                    other
                } else {
                    one
                }
            }
        };
        Ok(InFlight::new(replica))
    }
}

impl std::fmt::Debug for Upstreams {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Upstreams")
            .field("replicas", &self.replicas)
            .finish_non_exhaustive()
    }
}

/// The replicas that a request may go to: counted, not copied.
struct Usable<'r, P> {
    replicas: &'r [Arc<Replica>],
    condition: Condition,
    tried: Option<SocketAddr>,
    permits: P,
    count: usize,
}

impl<'r, P: Fn(&Replica) -> Permission> Usable<'r, P> {
    /// The first that is not empty: those that are up and not tried, those up, those not probed.
    fn of(
        replicas: &'r [Arc<Replica>],
        tried: Option<SocketAddr>,
        permits: P,
    ) -> Result<Self, NoReplica> {
        let mut usable = Self {
            replicas,
            condition: Condition::Up,
            tried,
            permits,
            count: 0,
        };
        for (condition, tried) in [
            (Condition::Up, tried),
            (Condition::Unknown, tried),
            (Condition::Up, None),
            (Condition::Unknown, None),
        ] {
            usable.condition = condition;
            usable.tried = tried;
            usable.count = usable.iter().count();
            if usable.count > 0 {
                return Ok(usable);
            }
        }
        Err(NoReplica {
            retry_after: usable.shortest_wait(),
        })
    }

    fn iter(&self) -> impl Iterator<Item = &'r Arc<Replica>> {
        self.replicas.iter().filter(|replica| {
            replica.condition() == self.condition
                && Some(replica.address) != self.tried
                && (self.permits)(replica) == Permission::Go
        })
    }

    fn nth(&self, number: usize) -> &'r Arc<Replica> {
        // A replica may have gone down since they were counted.
        self.iter()
            .nth(number)
            .or_else(|| self.iter().next())
            .unwrap_or(&self.replicas[0])
    }

    /// Until a breaker lets a probe through, or a replica that is down may be back.
    fn shortest_wait(&self) -> Duration {
        const USUAL: Duration = Duration::from_secs(1);
        self.replicas
            .iter()
            .filter(|replica| replica.condition() != Condition::Down)
            .filter_map(|replica| match (self.permits)(replica) {
                Permission::Wait(left) => Some(left),
                Permission::Go => None,
            })
            .min()
            .unwrap_or(USUAL)
    }
}
