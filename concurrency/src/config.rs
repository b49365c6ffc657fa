//! Settings that the modules under test take.

/// As in `gateway/src/config/model.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EndpointLimits {
    pub(crate) max_connections: usize,
    pub(crate) max_pending_requests: usize,
}
