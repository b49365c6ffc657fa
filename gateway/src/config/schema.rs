//! The JSON Schema of gateway.yml, for editors that complete and check it as one types.

/// JSON Schema, draft 2020-12.
pub(crate) const SCHEMA: &str = include_str!("gateway.schema.json");

#[cfg(test)]
mod tests;
