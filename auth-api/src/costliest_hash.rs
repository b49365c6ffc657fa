//! Cost of the costliest stored hash, on which the duration of every check of a password depends.
//!
//! A check that took as long as the hash of its own account would tell which logins are registered, if
//! hashes have different costs: after `BCRYPT_COST` was changed, or an import. All checks take as long as
//! one of the costliest hash that is stored and may be verified. Its cost is queried at the start and then
//! now and then, since that reads the whole table; a login that meets a higher one raises it at once.

use std::time::Duration;

use supervision::Supervisor;

use crate::hashing::Hasher;
use crate::store::unavailable::Unavailable;
use crate::users::Users;

/// Pause between two queries.
const QUERY_INTERVAL: Duration = Duration::from_mins(10);
/// Pause after a query that failed.
const RETRY_DELAY: Duration = Duration::from_secs(10);
/// Name of the task in the metrics.
const TASK: &str = "costliest_hash";

/// Queries the cost once, if the store is available, and starts to follow it.
pub(crate) async fn watch(users: &Users, hasher: &Hasher, supervisor: &Supervisor) {
    let (users, hasher, supervisor) = (users.clone(), hasher.clone(), supervisor.clone());
    let pause = pause_after(query(&users, &hasher).await);
    tokio::spawn(async move {
        let follow = || follow(&users, &hasher, pause);
        supervisor.keep_running(TASK, follow).await;
    });
}

async fn follow(users: &Users, hasher: &Hasher, mut pause: Duration) {
    loop {
        tokio::time::sleep(pause).await;
        pause = pause_after(query(users, hasher).await);
    }
}

async fn query(users: &Users, hasher: &Hasher) -> Result<(), Unavailable> {
    let cost = users.costliest_hash(hasher.max_cost()).await?;
    hasher.set_costliest_hash(cost);
    Ok(())
}

fn pause_after(outcome: Result<(), Unavailable>) -> Duration {
    match outcome {
        Ok(()) => QUERY_INTERVAL,
        Err(_) => RETRY_DELAY,
    }
}
