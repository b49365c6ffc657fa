//! Listeners: https for clients, cleartext for redirects, admin for operators.

mod acme_challenges;
pub(crate) mod admin;
pub(crate) mod cleartext;
pub(crate) mod connection_limit;
pub(crate) mod https;
pub(crate) mod redirect;
