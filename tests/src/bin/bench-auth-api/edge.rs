//! The edge that the benchmarks measure.

use anyhow::Result;
use tests::{Edge, Store};

/// A configuration with a quota that no benchmark reaches.
const CONFIG: &str = r#"
premier:
  paths:
    - pattern: "/api/*"
      features:
        rate_limit: {quota: 1000000000, duration: 60}
        monitoring: {log_threshold: 5.0}
"#;
/// Cost of bcrypt in production.
pub(crate) const PRODUCTION_BCRYPT_COST: u32 = 12;
/// Least cost of bcrypt, for benchmarks of everything but the hash.
pub(crate) const MIN_BCRYPT_COST: u32 = 4;

/// Starts an edge on PostgreSQL and Redis.
pub(crate) async fn start_edge(bcrypt_cost: u32) -> Result<Edge> {
    Edge::builder(Store::PostgresRedis)
        .config(CONFIG)
        .set("BCRYPT_COST", &bcrypt_cost.to_string())
        .set("LOG_LEVEL", "INFO")
        .start()
        .await
}
