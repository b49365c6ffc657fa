//! The answer that says only that it is done.

use schemars::JsonSchema;
use serde::Serialize;

#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Done {
    message: &'static str,
}

impl Done {
    pub(crate) const fn saying(message: &'static str) -> Self {
        Self { message }
    }
}
