//! What a test needs to drive the real programs from outside.
//!
//! A story starts an [`Edge`] (the gateway in front of replicas of auth-api, on the store that
//! it names) and talks to it as a client would, over TLS. Everything that was started ends when
//! its value is dropped, or when the process that started it dies.

pub mod address;
pub mod back_end;
pub mod browser;
pub mod certificate;
pub mod client;
pub mod edge;
pub mod gateway;
pub mod load;
pub mod pgbouncer;
pub mod postgres;
pub mod process;
pub mod raw;
pub mod redis;
pub mod replica;
pub mod slow;
pub mod wait;

pub use back_end::{BackEnd, Reply};
pub use client::Client;
pub use edge::Edge;
pub use gateway::Gateway;
pub use replica::Store;

/// Makes two tests of each story, an `async fn(Store) -> anyhow::Result<()>`: one for each store.
#[macro_export]
macro_rules! on_both_stores {
    ($($story:ident),+ $(,)?) => {$(
        mod $story {
            use $crate::Store;

            #[tokio::test]
            async fn on_postgres_and_redis() -> anyhow::Result<()> {
                super::$story(Store::PostgresRedis).await
            }

            #[tokio::test]
            async fn embedded() -> anyhow::Result<()> {
                super::$story(Store::Embedded).await
            }
        }
    )+};
}
