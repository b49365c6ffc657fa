//! JSON Schema of gateway.yml, for completion and validation in editors.

/// The schema, in JSON Schema draft 2020-12.
pub(crate) const SCHEMA: &str = include_str!("gateway.schema.json");

#[cfg(test)]
mod tests;
