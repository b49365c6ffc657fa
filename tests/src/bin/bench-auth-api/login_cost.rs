//! CPU time of auth-api for a login, alone and beside others, compared with a hash of the bcrypt
//! crate.

use anyhow::Result;
use tests::client::PASSWORD;
use tokio::task::JoinSet;

use crate::cpu_time::{auth_api_processes, cpu_seconds};
use crate::edge::{MIN_BCRYPT_COST, PRODUCTION_BCRYPT_COST, start_edge};

/// Logins that the hashing threads of two replicas on two cores can work on at once: a few less
/// than 32.
const SOME_CLIENTS: usize = 24;
/// Logins of which some wait for a hashing thread, but none for longer than a second.
const MANY_CLIENTS: usize = 48;
/// Hashes of the bcrypt crate that are measured.
const CRATE_HASHES: u32 = 8;

pub(crate) async fn run() -> Result<String> {
    let cost = PRODUCTION_BCRYPT_COST;
    let crate_hash = crate_hash_ms()?;
    let some = login_ms(cost, SOME_CLIENTS, 6).await?;
    let many = login_ms(cost, MANY_CLIENTS, 10).await?;
    let single = login_ms(cost, 1, 8).await?;
    let single_at_min_cost = login_ms(MIN_BCRYPT_COST, 1, 400).await?;
    // Each step of the cost doubles the work.
    let hash_at_min_cost = single / f64::from(1 << (cost - MIN_BCRYPT_COST));
    let besides_hash = single_at_min_cost - hash_at_min_cost;
    Ok(format!(
        "| login | ms of CPU each |\n|---|---|\n\
         | one hash of the bcrypt crate, cost {cost} | {crate_hash:.0} |\n\
         | {MANY_CLIENTS} concurrent logins, cost {cost} | {many:.0} ({:.1} times less) |\n\
         | {SOME_CLIENTS} concurrent logins, cost {cost} | {some:.0} ({:.1} times less) |\n\
         | a single login, cost {cost} | {single:.0} |\n\
         | everything besides the hash | {besides_hash:.2} |\n",
        crate_hash / many,
        crate_hash / some,
    ))
}

/// Returns the CPU time of one hash of the bcrypt crate, in milliseconds.
fn crate_hash_ms() -> Result<f64> {
    let this_process = [std::process::id()];
    let before = cpu_seconds(&this_process);
    for _ in 0..CRATE_HASHES {
        bcrypt::hash_with_salt(PASSWORD, PRODUCTION_BCRYPT_COST, [7; 16])?;
    }
    Ok((cpu_seconds(&this_process) - before) * 1e3 / f64::from(CRATE_HASHES))
}

/// Returns the CPU time of auth-api for one login, in milliseconds, while `clients` clients log in
/// `logins_each` times each.
async fn login_ms(bcrypt_cost: u32, clients: usize, logins_each: u32) -> Result<f64> {
    let edge = start_edge(bcrypt_cost).await?;
    edge.client()?.register("alice").await?;
    let processes = auth_api_processes(&edge);
    let before = cpu_seconds(&processes);
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let client = edge.client()?;
        tasks.spawn(async move {
            let mut logins = 0_u32;
            while logins < logins_each {
                logins += u32::from(client.login("alice").await?.status == 200);
            }
            anyhow::Ok(logins)
        });
    }
    let mut logins = 0;
    while let Some(done) = tasks.join_next().await {
        logins += done??;
    }
    Ok((cpu_seconds(&processes) - before) * 1e3 / f64::from(logins))
}
