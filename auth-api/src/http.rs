//! HTTP building blocks of the endpoints: extractors, responses, middleware and the OpenAPI document.

pub(crate) mod bearer;
mod body;
mod cache_policy;
pub(crate) mod credentials;
pub(crate) mod docs;
pub(crate) mod error;
mod form;
pub(crate) mod json_body;
pub(crate) mod message_response;
pub(crate) mod middleware;
pub(crate) mod oauth_error;
pub(crate) mod openapi;
pub(crate) mod token_request;
pub(crate) mod token_response;
