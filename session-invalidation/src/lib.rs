//! Invalidation of cached sessions across processes, over Redis pub/sub.
//!
//! Each replica of auth-api and each gateway is a *participant*: it caches active sessions, under a lease
//! with heartbeats (Gray and Cheriton, "Leases", SOSP 1989), and ending a session is acknowledged by every
//! participant before the caller gets a response.
//!
//! - The script that ends a session publishes an invalidation, atomically with the change. Redis
//!   delivers the messages of all channels to one connection in the order of publication.
//! - A participant publishes heartbeats and receives its own ones over the connection that delivers
//!   invalidations. A received heartbeat proves that every invalidation published before it was
//!   received too, so it renews the lease from the time at which it was sent.
//! - A heartbeat is sent after a write on the same connection, and renews the lease unless the server rejects the write as
//!   one that is not the primary (`READONLY`, `NOREPLICAS`).
//! - A participant uses its cache only while its lease is valid.
//! - A replica that ends a session waits until every participant with a valid lease has acknowledged the
//!   invalidation, or until the lease of those that did not has expired.
//!
//! Invariant: when a response reports that a session has ended, no participant accepts it any more. It
//! would be broken by Redis delivering messages out of order, by a clock ([`std::time::Instant`]) that
//! stops while a process is stopped, by a cache that is used without the lease, or by a former primary that cannot
//! persist writes: it rejects them for that reason (`MISCONF`) before it looks for its replicas.
//!
//! A gateway caches what replicas tell it, and a replica may tell it from its own cache. That would break the
//! invariant without a further rule, see [`LookupSource::CachingReplica`].

mod acknowledgement;
mod cache;
mod check_gate;
mod generation;
mod ids;
mod lease;
mod message;
mod participant;
mod primary;
mod recent;
#[cfg(test)]
mod simulation;
mod subscriber;

pub use acknowledgement::{InvalidationTracker, PendingInvalidation};
pub use cache::{CacheVersion, LeasedCache, LookupSource};
pub use check_gate::CheckGates;
pub use generation::{CacheEntry, Owner};
pub use ids::{SessionId, UserId};
pub use message::{INVALIDATION_CHANNEL, UNACKNOWLEDGED_HEADER};
pub use subscriber::Subscriber;
