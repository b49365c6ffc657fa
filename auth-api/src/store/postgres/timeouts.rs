//! Time limits of PostgreSQL operations, which all fit into the three seconds of a request.

use std::time::Duration;

/// Longest duration of an operation, including the wait for a connection.
pub(crate) const OPERATION_TIMEOUT: Duration = Duration::from_millis(2500);
/// Longest wait for a pooled connection.
pub(super) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest duration of an attempt to connect that is to tell why the pool has no connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// `statement_timeout` of the server. It is shorter than [`OPERATION_TIMEOUT`], so that a statement
/// that was reported as 503 is not executed later.
pub(super) const STATEMENT_TIMEOUT: Duration = Duration::from_millis(1250);
/// `lock_timeout` of the server. It is shorter than [`ACQUIRE_TIMEOUT`], so that statements that wait
/// for one locked row cannot exhaust the pool.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_millis(500);

/// Idle time after which a connection is pinged before it is used.
pub(super) const PING_AFTER_IDLE: Duration = Duration::from_secs(1);
/// Longest wait for the reply to that ping. It leaves enough time to open another connection.
pub(super) const PING_TIMEOUT: Duration = Duration::from_millis(500);

/// Longest wait at start for a server that does not accept connections yet.
pub(super) const STARTUP_TIMEOUT: Duration = Duration::from_mins(1);
/// Longest duration of one attempt to connect at start and to read the state of the schema. A server
/// that recovers from a crash may be slow, and one that is stopped never responds.
pub(super) const STARTUP_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
pub(super) const STARTUP_RETRY_DELAY: Duration = Duration::from_millis(500);
