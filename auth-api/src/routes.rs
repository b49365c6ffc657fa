//! The endpoints: one file each, with what it takes, what it answers, and the way from one to the other.

pub(crate) mod delete;
mod done;
pub(crate) mod health;
pub(crate) mod login;
pub(crate) mod logout;
pub(crate) mod logout_all;
pub(crate) mod metrics;
pub(crate) mod password;
pub(crate) mod profile;
pub(crate) mod ready;
pub(crate) mod refresh;
pub(crate) mod register;
pub(crate) mod sessions;
