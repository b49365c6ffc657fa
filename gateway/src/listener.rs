//! Listeners: https for clients, cleartext for redirects, admin for operators.

pub(crate) mod admin;
pub(crate) mod cleartext;
pub(crate) mod connection_limit;
pub(crate) mod https;
pub(crate) mod redirect;
