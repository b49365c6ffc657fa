//! Shutdown state, and operations that must complete.
//!
//! A gateway keeps connections to this program open. Closing one while the gateway sends a request on
//! it would fail that request. So before the shutdown each response announces that it is the last
//! one of its connection, and requests are served until none arrive (RFC 9112, section 9.6).
//!
//! A client may also disconnect during its request, which drops the handler. Operations that change
//! an account or a session run in tasks of their own and complete all the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use tokio::task::JoinHandle;

/// Shutdown state shared by the server and the request handlers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lifecycle(Arc<LifecycleState>);

#[derive(Debug, Default)]
struct LifecycleState {
    is_shutting_down: AtomicBool,
    requests: AtomicU64,
    /// Number of operations that have to complete.
    pending_operations: AtomicUsize,
}

impl Lifecycle {
    /// Begins the shutdown: from now on every response is the last one of its connection.
    pub(crate) fn begin_shutdown(&self) {
        self.0.is_shutting_down.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_shutting_down(&self) -> bool {
        self.0.is_shutting_down.load(Ordering::Relaxed)
    }

    pub(crate) fn count_request(&self) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of requests since the start.
    pub(crate) fn requests(&self) -> u64 {
        self.0.requests.load(Ordering::Relaxed)
    }

    /// Runs an operation to completion even if its client disconnects: several changes that belong
    /// together, and the audit event about them. A panic of the operation is one of the caller.
    pub(crate) async fn complete<T: Send + 'static>(
        &self,
        operation: impl Future<Output = T> + Send + 'static,
    ) -> T {
        match self.start(operation).await {
            Ok(output) => output,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Only the end of the runtime cancels the task, and it ends the caller too.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Starts an operation that a shutdown waits for, as [`Self::complete`] does.
    pub(crate) fn start<T: Send + 'static>(
        &self,
        operation: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let guard = OperationGuard::new(&self.0);
        tokio::spawn(async move {
            let _guard = guard;
            operation.await
        })
    }

    pub(crate) fn has_pending_operations(&self) -> bool {
        self.0.pending_operations.load(Ordering::Relaxed) > 0
    }
}

/// Counts an operation as pending until it is dropped.
struct OperationGuard(Arc<LifecycleState>);

impl OperationGuard {
    fn new(state: &Arc<LifecycleState>) -> Self {
        state.pending_operations.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(state))
    }
}

impl Drop for OperationGuard {
    fn drop(&mut self) {
        self.0.pending_operations.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test]
    async fn an_operation_that_panics_is_no_longer_pending() {
        let lifecycle = Lifecycle::default();
        let operation = lifecycle.complete::<()>(async { panic!("within an operation") });
        assert!(supervision::catch_unwind(pin!(operation)).await.is_err());
        assert!(!lifecycle.has_pending_operations());
        assert_eq!(lifecycle.complete(async { 1 }).await, 1);
    }
}
