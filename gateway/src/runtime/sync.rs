//! Atomics, notifications and time limits of modules whose threads share memory without a lock. `concurrency/` compiles
//! those modules with loom's in place of these.

pub(crate) use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

pub(crate) use tokio::sync::Notify;
pub(crate) use tokio::time::timeout;
