//! Supervision of background tasks: one-for-one restarts, as by Erlang/OTP's supervisors.
//!
//! A task that others wait for must not end because of a panic: they would wait for ever, or fail
//! until the process is restarted. So such a task runs under a [`Supervisor`], which starts it again
//! after an exponentially growing delay, logs that and counts it. Work that is done item by item, such as
//! the hashing of passwords, catches the panic of one item instead ([`Supervisor::catch`]), so that no
//! delay concerns the other items.
//!
//! Invariant: a restarted task finds consistent state. What a task has counted or marked is given back
//! by guards when it unwinds, and locks are those of `parking_lot`, which a panic does not poison.
//!
//! The resources of the process are here too: their metrics ([`process_registry`]) and its limit of open files
//! ([`raise_open_file_limit`]). So is the check of the names by which the listeners for operators are asked
//! ([`is_internal_name`]).
//!
//! A panic while another one unwinds aborts the process; its supervisor (systemd, Docker,
//! Kubernetes) starts it again.

mod backoff;
mod internal_name;
mod open_files;
mod process_metrics;

use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, Opts};

use backoff::Backoff;
pub use internal_name::is_internal_name;
pub use open_files::raise_open_file_limit;
pub use process_metrics::process_registry;

/// A panic ended the computation. The panic hook has logged where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the computation panicked")]
pub struct Panicked;

/// Supervisor of a program's background tasks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Supervisor {
    restarts: IntCounterVec,
    panics: IntCounter,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}

impl Supervisor {
    /// Creates a supervisor with metrics of its own.
    ///
    /// # Panics
    /// Never: the names of the metrics are valid.
    #[must_use]
    pub fn new() -> Self {
        let restarts = Opts::new(
            "task_restarts_total",
            "Background tasks that panicked and were started again.",
        );
        let panics = IntCounter::new("panics_total", "Panics, of requests and background tasks.");
        Self {
            restarts: IntCounterVec::new(restarts, &["task"]).expect("the names are valid"),
            panics: panics.expect("the name is valid"),
        }
    }

    /// Returns the metrics `task_restarts_total{task}` and `panics_total`.
    #[must_use]
    pub fn metrics(&self) -> [Box<dyn Collector>; 2] {
        [
            Box::new(self.restarts.clone()),
            Box::new(self.panics.clone()),
        ]
    }

    /// Returns the number of restarts of `task`.
    #[must_use]
    pub fn restarts(&self, task: &str) -> u64 {
        self.restarts.with_label_values(&[task]).get()
    }

    /// From now on, panics of the process are counted and logged as events instead of being written to
    /// standard error, which may block.
    pub fn install_panic_hook(&self) {
        let panics = self.panics.clone();
        panic::set_hook(Box::new(move |info| {
            panics.inc();
            log_panic(info);
        }));
    }

    /// Runs the task that `start` returns, and starts it again whenever it panics. Returns when it
    /// completes.
    pub async fn run<F: Future>(
        &self,
        task: &'static str,
        mut start: impl FnMut() -> F,
    ) -> F::Output {
        let mut backoff = Backoff::default();
        loop {
            let started_at = Instant::now();
            if let Ok(output) = catch_unwind(pin!(async { start().await })).await {
                return output;
            }
            let delay = self.record_restart(task, &mut backoff, started_at);
            tokio::time::sleep(delay).await;
        }
    }

    /// Like [`Self::run`], for a task that has to run as long as the process: it is also started again if
    /// it returns.
    pub async fn keep_running<F: Future<Output = ()>>(
        &self,
        task: &'static str,
        mut start: impl FnMut() -> F,
    ) {
        let mut backoff = Backoff::default();
        loop {
            let started_at = Instant::now();
            // An end by a return is no better than one by a panic.
            let _ = catch_unwind(pin!(async { start().await })).await;
            let delay = self.record_restart(task, &mut backoff, started_at);
            tokio::time::sleep(delay).await;
        }
    }

    /// Like [`Self::run`], for a thread.
    pub fn run_blocking<T>(&self, task: &'static str, mut body: impl FnMut() -> T) -> T {
        let mut backoff = Backoff::default();
        loop {
            let started_at = Instant::now();
            if let Ok(output) = panic::catch_unwind(AssertUnwindSafe(&mut body)) {
                return output;
            }
            thread::sleep(self.record_restart(task, &mut backoff, started_at));
        }
    }

    /// Runs one item of the work of `task`, which goes on with the next item if this one panics.
    ///
    /// # Errors
    /// Returns an error if `item` panicked.
    pub async fn catch<F: Future>(
        &self,
        task: &'static str,
        item: Pin<&mut F>,
    ) -> Result<F::Output, Panicked> {
        let result = catch_unwind(item).await;
        if result.is_err() {
            self.record_failed_item(task);
        }
        result
    }

    /// Like [`Self::catch`], for a thread.
    ///
    /// # Errors
    /// Returns an error if `item` panicked.
    pub fn catch_blocking<T>(
        &self,
        task: &'static str,
        item: impl FnOnce() -> T,
    ) -> Result<T, Panicked> {
        panic::catch_unwind(AssertUnwindSafe(item)).map_err(|_| {
            self.record_failed_item(task);
            Panicked
        })
    }

    fn record_failed_item(&self, task: &'static str) {
        self.restarts.with_label_values(&[task]).inc();
        tracing::error!(
            task,
            "background task panicked: it goes on with the next item"
        );
    }

    /// Returns the delay before the restart.
    fn record_restart(
        &self,
        task: &'static str,
        backoff: &mut Backoff,
        started_at: Instant,
    ) -> Duration {
        let delay = backoff.next_delay(started_at.elapsed());
        self.restarts.with_label_values(&[task]).inc();
        let delay_ms = delay.as_millis();
        tracing::error!(task, delay_ms, "background task ended: it is started again");
        delay
    }
}

/// Polls `future` to its end, which a panic is too. Its caller owns it, so that a large future is not
/// moved into another one.
///
/// # Errors
/// Returns an error if it panicked.
pub async fn catch_unwind<F: Future>(mut future: Pin<&mut F>) -> Result<F::Output, Panicked> {
    std::future::poll_fn(|context| {
        let poll = AssertUnwindSafe(|| future.as_mut().poll(context));
        match panic::catch_unwind(poll) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    })
    .await
}

/// Logs where a panic occurred. Its message is logged only if it is a literal: others may quote
/// what a client sent, such as a password.
fn log_panic(info: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let location = info.location().map(tracing::field::display);
    let reason = info.payload().downcast_ref::<&'static str>();
    tracing::error!(thread = thread.name(), location, reason, "panic");
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const TASK: &str = "tested";

    /// Returns a function that panics the first time it is called.
    fn fails_once() -> impl FnMut() -> u32 {
        let mut calls = 0;
        move || {
            calls += 1;
            assert!(calls > 1, "the first call panics");
            calls
        }
    }

    #[tokio::test]
    async fn a_task_that_panics_is_started_again() {
        let supervisor = Supervisor::new();
        let mut call = fails_once();
        let calls = supervisor.run(TASK, || std::future::ready(call())).await;
        assert_eq!((calls, supervisor.restarts(TASK)), (2, 1));
    }

    #[test]
    fn a_thread_that_panics_is_started_again() {
        let supervisor = Supervisor::new();
        let calls = supervisor.run_blocking(TASK, fails_once());
        assert_eq!((calls, supervisor.restarts(TASK)), (2, 1));
    }

    #[tokio::test]
    async fn a_task_that_must_not_end_is_started_again_when_it_returns() {
        let supervisor = Supervisor::new();
        let starts = Arc::new(AtomicU32::new(0));
        let (started, mut restarted) = tokio::sync::mpsc::unbounded_channel();
        let task = supervisor.keep_running(TASK, || {
            let (starts, started) = (Arc::clone(&starts), started.clone());
            async move {
                let _ = started.send(starts.fetch_add(1, Ordering::Relaxed));
            }
        });
        tokio::select! {
            () = task => unreachable!("the task is kept running"),
            () = async { while restarted.recv().await != Some(1) {} } => {}
        }
        assert!(supervisor.restarts(TASK) >= 1);
    }

    #[tokio::test]
    async fn a_panic_of_one_item_is_an_error_of_that_item() {
        let supervisor = Supervisor::new();
        let fails = pin!(async { panic!("an item that cannot be processed") });
        assert_eq!(
            supervisor.catch::<_>(TASK, fails).await,
            Err::<(), _>(Panicked)
        );
        assert_eq!(supervisor.catch(TASK, pin!(async { 1 })).await, Ok(1));
        let result = supervisor.catch_blocking(TASK, || panic!("an item that cannot be processed"));
        assert_eq!(result, Err::<(), _>(Panicked));
        assert_eq!(supervisor.restarts(TASK), 2);
    }

    #[tokio::test]
    async fn values_of_a_future_that_panics_are_dropped() {
        let value = Arc::new(());
        let held = Arc::clone(&value);
        let result = catch_unwind(pin!(async move {
            tokio::task::yield_now().await;
            panic!(
                "after a pause, with {} references",
                Arc::strong_count(&held)
            );
        }))
        .await;
        assert_eq!(result, Err::<(), _>(Panicked));
        assert_eq!(Arc::strong_count(&value), 1);
    }
}
