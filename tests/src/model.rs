//! Random sequences of steps by which the programs are compared with a model.

use std::cell::RefCell;
use std::fmt::Debug;

use anyhow::{Result, anyhow};
use proptest::collection::vec;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

/// Sequences that are tried to find a shorter one that fails too.
const MAX_SHRINK_ITERATIONS: u32 = 200;

/// Runs `cases` sequences of up to `max_steps` steps. The environment variable `PROPTEST_CASES` overrides `cases`.
///
/// # Errors
/// Returns the shortest sequence found for which `run` returns an error, with that error.
pub fn run_sequences<S: Debug>(
    cases: u32,
    max_steps: usize,
    step: impl Strategy<Value = S>,
    run: impl FnMut(&[S]) -> Result<()>,
) -> Result<()> {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(cases);
    let mut runner = TestRunner::new(Config {
        cases,
        max_shrink_iters: MAX_SHRINK_ITERATIONS,
        failure_persistence: None,
        ..Config::default()
    });
    let run = RefCell::new(run);
    runner
        .run(&vec(step, 1..max_steps), |steps| {
            let result = (*run.borrow_mut())(&steps);
            result.map_err(|error| TestCaseError::fail(format!("{error:#}")))
        })
        .map_err(|error| anyhow!("{error}"))
}
