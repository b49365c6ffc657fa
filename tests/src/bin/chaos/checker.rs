//! Checks of a history, without I/O. Each module has one promise.

pub(crate) mod accounts;
pub(crate) mod deadlines;
pub(crate) mod quotas;
pub(crate) mod sessions;
