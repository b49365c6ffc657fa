//! Domain types: values that are validated once, where they enter the program.
//!
//! This module imports nothing else of the crate, so that every other module can use it.

pub(crate) mod access_token;
mod common_passwords;
pub(crate) mod digest;
pub(crate) mod login;
pub(crate) mod login_pseudonym;
pub(crate) mod oauth_client;
pub(crate) mod password;
pub(crate) mod password_hash;
pub(crate) mod principal;
pub(crate) mod problem;
pub(crate) mod refresh_token;
pub(crate) mod secret_keys;
pub(crate) mod session;
pub(crate) mod session_cutoff;
pub(crate) mod signing_keys;
mod strict_json;
pub(crate) mod time;
pub(crate) mod user;
