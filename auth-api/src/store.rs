//! Connections to the stores: PostgreSQL, Redis and SQLite.

pub(crate) mod check;
mod migrations;
pub(crate) mod postgres;
pub(crate) mod redis;
pub(crate) mod sqlite;
mod stale_connections;
pub(crate) mod unavailable;
