//! Models of what threads share without a lock. loom runs each of them in every interleaving of its threads and with
//! every value that the memory model (that of C11, as loom implements it) permits a load to return, up to a bound of
//! preemptions.
//!
//! The modules under test are the files of the programs, compiled with loom's atomics in place of those of the standard library:
//! they import them from `crate::runtime::sync`, which is another module here. Without `--cfg loom` the crate is empty. `make
//! loom` runs the models.
#![cfg(loom)]

mod config;
mod runtime;

#[path = "../../gateway/src/upstream/connection_slots.rs"]
mod connection_slots;
#[path = "../../gateway/src/telemetry/event_interval.rs"]
mod event_interval;
#[path = "../../gateway/src/features/rate_limit/shared/pause_detector.rs"]
mod pause_detector;
#[path = "../../gateway/src/features/retry/budget.rs"]
mod retry_budget;

pub mod models;
