//! Endpoints, one file each: description for the OpenAPI document, request, response and handler.

pub(crate) mod delete;
pub(crate) mod end_session;
pub(crate) mod health;
pub(crate) mod introspect;
pub(crate) mod jwk_set;
pub(crate) mod list_sessions;
pub(crate) mod login;
pub(crate) mod logout;
pub(crate) mod logout_all;
pub(crate) mod metrics;
pub(crate) mod password;
pub(crate) mod profile;
pub(crate) mod ready;
pub(crate) mod refresh;
pub(crate) mod register;
pub(crate) mod revoke;
pub(crate) mod verify;
