//! Benchmarks of the whole edge: `scripts/bench auth-api`. Prints one table for each of the parts
//! profile, logins, storm, start and idle, or for those that the arguments name.

mod cpu_time;
mod edge;
mod idle_connections;
mod login_cost;
mod login_storm;
mod profile;
mod startup;

use anyhow::Result;

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the tables are the program's output")]
async fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let is_selected =
        |part: &str| arguments.is_empty() || arguments.iter().any(|argument| argument == part);
    if is_selected("profile") {
        println!("{}", profile::run().await?);
    }
    if is_selected("logins") {
        println!("{}", login_cost::run().await?);
    }
    if is_selected("storm") {
        println!("{}", login_storm::run().await?);
    }
    if is_selected("start") {
        println!("{}", startup::run().await?);
    }
    if is_selected("idle") {
        println!("{}", idle_connections::run().await?);
    }
    Ok(())
}
