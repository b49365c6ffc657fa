//! Features of a path pattern, one file each.

pub(crate) mod circuit_breaker;
pub(crate) mod cors;
pub(crate) mod header_rules;
pub(crate) mod monitoring;
pub(crate) mod rate_limit;
pub(crate) mod retry;
pub(crate) mod timeout;
