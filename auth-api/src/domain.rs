//! What cannot be wrong: values that were checked once, where they came in.

mod common_passwords;
pub(crate) mod login;
pub(crate) mod password;
pub(crate) mod refresh_token;
pub(crate) mod session;
mod strict_json;
pub(crate) mod token;
pub(crate) mod user;
