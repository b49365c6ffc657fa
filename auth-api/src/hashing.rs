//! Password hashing: bcrypt on a thread pool of its own.

mod bcrypt_lanes;
mod blowfish_tables;
mod fairness;
mod pool;

pub(crate) use pool::{Hasher, HashingSettings, Match, QueueFull, Rehash};
