//! Response with nothing but a message about the success.

use schemars::JsonSchema;
use serde::Serialize;

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Done")]
pub(crate) struct MessageResponse {
    message: &'static str,
}

impl MessageResponse {
    pub(crate) const fn new(message: &'static str) -> Self {
        Self { message }
    }
}
