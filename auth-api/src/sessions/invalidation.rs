//! Invalidation of cached sessions across replicas, over Redis pub/sub.
//!
//! Each replica caches active sessions, under a lease with heartbeats (Gray and Cheriton, "Leases",
//! SOSP 1989), and ending a session is acknowledged by every replica before the caller gets a
//! response.
//!
//! - The script that ends a session publishes an invalidation, atomically with the change. Redis
//!   delivers the messages of all channels to one connection in the order of publication.
//! - A replica publishes heartbeats and receives its own ones over the connection that delivers
//!   invalidations. A received heartbeat proves that every invalidation published before it was
//!   received too, so it renews the lease from the time at which it was sent.
//! - A replica uses its cache only while its lease is valid.
//! - A replica that ends a session waits until every replica with a valid lease has acknowledged the
//!   invalidation, or until the lease of those that did not has expired.
//!
//! Invariant: when a response reports that a session has ended, no replica accepts it any more. It
//! would be broken by Redis delivering messages out of order, by a clock ([`std::time::Instant`]) that
//! stops while a process is stopped, or by a cache that is used without the lease.

pub(super) mod acknowledgement;
pub(super) mod message;
pub(super) mod subscriber;
