//! Progress of a test that takes long, on standard error: the tables are on standard output.

use std::sync::OnceLock;
use std::time::Instant;

/// Instant of the first step.
static START: OnceLock<Instant> = OnceLock::new();

/// Reports the step that begins.
#[expect(clippy::print_stderr, reason = "progress of a command-line program")]
pub(crate) fn report(step: &str) {
    let seconds = START.get_or_init(Instant::now).elapsed().as_secs();
    eprintln!("e2e: {seconds:4} s: {step}");
}
