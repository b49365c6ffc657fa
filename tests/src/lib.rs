//! Test harness that drives the real programs from outside.
//!
//! An end-to-end test starts an [`Edge`] (the gateway in front of replicas of auth-api, on a given
//! [`Store`]) and sends it requests as a client does, over TLS. Every process ends when the value
//! that owns it is dropped, or when the thread that started it dies.

pub mod address;
pub mod browser;
pub mod certificate;
pub mod client;
pub mod clock;
pub mod command;
pub mod edge;
pub mod fault_proxy;
pub mod gateway;
pub mod http2_frames;
pub mod identity_edge;
pub mod interruption;
pub mod load;
pub mod make_run;
pub mod mock_upstream;
pub mod model;
pub mod nginx;
pub mod oauth_client;
pub mod pgbouncer;
pub mod pingora_proxy;
pub mod postgres;
pub mod process;
mod random;
pub mod raw_connection;
pub mod recording_upstream;
pub mod redis;
pub mod redis_deployments;
pub mod replicas;
pub mod runbook;
pub mod session_backup;
pub mod settings;
pub mod signing_key;
pub mod store_breakpoint;
pub mod terminal;
pub mod wait;

pub use client::Client;
pub use edge::Edge;
pub use gateway::Gateway;
pub use mock_upstream::{MockResponse, MockUpstream};
pub use replicas::Store;

/// Defines two tests for each `async fn(Store) -> anyhow::Result<()>`, one for each [`Store`].
#[macro_export]
macro_rules! on_both_stores {
    ($($test:ident),+ $(,)?) => {$(
        mod $test {
            use $crate::Store;

            #[tokio::test]
            async fn on_postgres_and_redis() -> anyhow::Result<()> {
                super::$test(Store::PostgresRedis).await
            }

            #[tokio::test]
            async fn embedded() -> anyhow::Result<()> {
                super::$test(Store::Embedded).await
            }
        }
    )+};
}
