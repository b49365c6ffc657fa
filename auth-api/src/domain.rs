//! What cannot be wrong: values that were checked once, where they came in.

pub(crate) mod login;
pub(crate) mod password;
pub(crate) mod session;
pub(crate) mod token;
pub(crate) mod user;
