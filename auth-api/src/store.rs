//! Connections to the stores: PostgreSQL, Redis and SQLite.

mod migrations;
pub(crate) mod postgres;
pub(crate) mod redis;
pub(crate) mod sqlite;
pub(crate) mod unavailable;
