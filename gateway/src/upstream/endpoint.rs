//! Endpoint: one address of a server, with its idle connections, its health and its requests in
//! flight.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::config::{EndpointLimits, Server};
use crate::runtime::clock::Instant;
use crate::telemetry::event_interval::EventInterval;
use crate::telemetry::gauge_guard::GaugeGuard;
use crate::telemetry::metrics::EndpointMetrics;
use crate::upstream::connect_error::ConnectError;
use crate::upstream::connection::Connection;
use crate::upstream::connection_slots::{ConnectionSlots, Overflow};
use crate::upstream::connector::Connector;
use crate::upstream::health::{HealthStatus, ProbeHistory};
use crate::upstream::pool::ConnectionPool;

/// Endpoint of an attempt.
#[derive(Debug)]
pub(crate) struct ChosenEndpoint {
    pub(crate) in_flight: InFlight,
    /// Health of the endpoint when it was chosen.
    pub(crate) health: HealthStatus,
}

/// Address to which requests are forwarded.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Name of the upstream group.
    upstream: String,
    pub(crate) address: SocketAddr,
    /// Server whose name resolved to the address.
    pub(crate) server: Server,
    pub(super) pool: ConnectionPool,
    in_flight: AtomicUsize,
    slots: ConnectionSlots,
    overflow_logged: EventInterval,
    /// [`HealthStatus`] as a number.
    health: AtomicU8,
    pub(super) probes: Mutex<ProbeHistory>,
    pub(crate) metrics: Arc<EndpointMetrics>,
}

impl Endpoint {
    pub(super) fn new(
        upstream: &str,
        address: SocketAddr,
        server: &Server,
        metrics: Arc<EndpointMetrics>,
    ) -> Self {
        Self {
            upstream: upstream.to_owned(),
            address,
            server: server.clone(),
            pool: ConnectionPool::new(),
            in_flight: AtomicUsize::new(0),
            slots: ConnectionSlots::default(),
            overflow_logged: EventInterval::default(),
            health: AtomicU8::new(HealthStatus::Unknown as u8),
            probes: Mutex::default(),
            metrics,
        }
    }

    /// Returns a connection for one exchange.
    ///
    /// # Errors
    /// Returns an error if a new connection is needed and cannot be established within `timeout`.
    pub(super) async fn connect(
        &self,
        connector: Connector<'_>,
        reuse: ConnectionReuse,
        timeout: Duration,
    ) -> Result<Connection, ConnectError> {
        let tls = connector.tls_to(&self.server)?;
        if reuse == ConnectionReuse::Allowed
            && let Some(connection) = self.pool.take(tls, Instant::now())
        {
            return Ok(connection);
        }
        // New connections are rare: boxing their future keeps that of every exchange small.
        Box::pin(connector.open(&self.server, self.address, timeout)).await
    }

    /// Puts a connection into the pool after an exchange, or closes it if it is not reusable.
    pub(crate) fn keep(&self, connection: Connection, now: Instant) {
        self.pool.put(connection, now);
    }

    pub(crate) fn health(&self) -> HealthStatus {
        match self.health.load(Ordering::Relaxed) {
            status if status == HealthStatus::Healthy as u8 => HealthStatus::Healthy,
            status if status == HealthStatus::Unhealthy as u8 => HealthStatus::Unhealthy,
            _ => HealthStatus::Unknown,
        }
    }

    pub(super) fn set_health(&self, status: HealthStatus, reason: &str) {
        let before = self.health.swap(status as u8, Ordering::Relaxed);
        let is_healthy = status == HealthStatus::Healthy;
        self.metrics.up.set(i64::from(is_healthy));
        if before == status as u8 {
            return;
        }
        let (upstream, endpoint) = (&self.upstream, self.address);
        if status == HealthStatus::Unhealthy {
            tracing::warn!(upstream, %endpoint, reason, "endpoint marked unhealthy");
        } else {
            tracing::info!(upstream, %endpoint, reason, "endpoint marked healthy");
        }
    }

    /// Records that a request could not be connected. The endpoint gets no requests until probes
    /// succeed.
    pub(crate) fn record_connect_failure(&self, error: &ConnectError) {
        self.metrics.connect_failures.inc();
        let reason = format!("connection failed: {error}");
        self.set_health(HealthStatus::Unhealthy, &reason);
        self.probes.lock().reset();
    }

    /// Records that a request got no connection.
    fn record_overflow(&self, limits: EndpointLimits) {
        self.metrics.overflow.inc();
        if self.overflow_logged.begin(Instant::now()) {
            tracing::warn!(
                upstream = self.upstream,
                endpoint = %self.address,
                max_connections = limits.max_connections,
                "no connection to the endpoint is free: rejected with 503"
            );
        }
    }

    /// Returns the number of connections that requests use.
    pub(crate) fn connections_in_use(&self) -> usize {
        self.slots.used()
    }

    /// Returns the number of requests that wait for a connection.
    pub(crate) fn pending(&self) -> usize {
        self.slots.pending()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// Guard of a request in flight: counts it at its endpoint, and holds its connection slot, until the guard
/// is dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    endpoint: Arc<Endpoint>,
    slot: ConnectionSlot,
}

/// Slot of a request for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionSlot {
    None,
    Held,
}

impl InFlight {
    pub(super) fn new(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        endpoint.metrics.in_flight.inc();
        Self {
            endpoint: Arc::clone(endpoint),
            slot: ConnectionSlot::None,
        }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Takes a connection slot, and returns whether one was free.
    pub(crate) fn try_acquire_slot(&mut self, limits: EndpointLimits) -> bool {
        if self.endpoint.slots.try_acquire(limits) {
            self.slot = ConnectionSlot::Held;
        }
        self.slot == ConnectionSlot::Held
    }

    /// Waits for a connection slot.
    ///
    /// # Errors
    /// Returns an error after `timeout`, or at once if too many requests wait already.
    pub(crate) async fn acquire_slot(
        &mut self,
        limits: EndpointLimits,
        timeout: Duration,
    ) -> Result<(), Overflow> {
        let endpoint = &self.endpoint;
        let _pending = GaugeGuard::increment(&endpoint.metrics.pending);
        let result = endpoint.slots.acquire(limits, timeout).await;
        match result {
            Ok(()) => self.slot = ConnectionSlot::Held,
            Err(Overflow) => endpoint.record_overflow(limits),
        }
        result
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.slot == ConnectionSlot::Held {
            self.endpoint.slots.release();
        }
        self.endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.endpoint.metrics.in_flight.dec();
    }
}

/// Permission to use an idle connection of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionReuse {
    Allowed,
    Forbidden,
}
