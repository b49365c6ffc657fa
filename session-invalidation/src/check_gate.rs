//! Gate before the check of a token: one check of a token at a time, whose result serves every request that
//! arrived before the check began.
//!
//! A request that arrives while a check is under way cannot use its result: the session may have been ended,
//! and that acknowledged, since the check read its state. It waits, and the next check serves all that have waited. So
//! a token costs auth-api one request at a time, however many requests carry it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

/// Gates of the tokens that are being checked, by key.
#[derive(Debug)]
pub struct CheckGates<K, R>(Mutex<HashMap<K, Arc<Gate<R>>>>);

type Gate<R> = tokio::sync::Mutex<Option<LastCheck<R>>>;

/// Completed check.
#[derive(Debug)]
struct LastCheck<R> {
    began: Instant,
    result: R,
}

impl<K, R> Default for CheckGates<K, R> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq + Clone, R: Clone> CheckGates<K, R> {
    /// Returns the result of a check of the token `key` that begins after this call: `check` is polled unless another
    /// request's check serves this one too. `clock` returns the time.
    pub async fn pass(
        &self,
        key: K,
        clock: impl Fn() -> Instant,
        check: impl Future<Output = R>,
    ) -> R {
        let arrived = clock();
        let entered = self.enter(key);
        let mut last = entered.gate.lock().await;
        if let Some(last) = last.as_ref().filter(|last| last.began >= arrived) {
            return last.result.clone();
        }
        let began = clock();
        let result = check.await;
        *last = Some(LastCheck {
            began,
            result: result.clone(),
        });
        result
    }

    fn enter(&self, key: K) -> Entered<'_, K, R> {
        let gate = Arc::clone(self.0.lock().entry(key.clone()).or_default());
        Entered {
            gates: self,
            key,
            gate,
        }
    }
}

/// Request at a gate. The last one to leave removes the gate.
struct Entered<'g, K: Hash + Eq, R> {
    gates: &'g CheckGates<K, R>,
    key: K,
    gate: Arc<Gate<R>>,
}

impl<K: Hash + Eq, R> Drop for Entered<'_, K, R> {
    fn drop(&mut self) {
        const MAP_AND_SELF: usize = 2;
        let mut gates = self.gates.0.lock();
        if Arc::strong_count(&self.gate) == MAP_AND_SELF {
            gates.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    /// Checks that end when the test permits it. Each returns its number.
    struct Checks {
        gates: CheckGates<&'static str, u32>,
        begun: AtomicU32,
        permits: Semaphore,
    }

    impl Checks {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                gates: CheckGates::default(),
                begun: AtomicU32::new(0),
                permits: Semaphore::new(0),
            })
        }

        /// Starts a request with `token` and waits until it is at the gate.
        async fn start(self: &Arc<Self>, token: &'static str) -> tokio::task::JoinHandle<u32> {
            let checks = Arc::clone(self);
            let request = tokio::spawn(async move {
                let check = async {
                    let number = checks.begun.fetch_add(1, Ordering::Relaxed) + 1;
                    checks.permits.acquire().await.unwrap().forget();
                    number
                };
                checks.gates.pass(token, Instant::now, check).await
            });
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            request
        }
    }

    #[tokio::test]
    async fn requests_that_arrive_during_a_check_share_the_next_one() {
        let checks = Checks::new();
        let first = checks.start("a").await;
        let mut waiting = Vec::new();
        for _ in 0..5 {
            waiting.push(checks.start("a").await);
        }
        let other = checks.start("b").await;
        assert_eq!(checks.begun.load(Ordering::Relaxed), 2);
        checks.permits.add_permits(3);
        assert_eq!((first.await.unwrap(), other.await.unwrap()), (1, 2));
        for request in waiting {
            assert_eq!(request.await.unwrap(), 3);
        }
        assert!(checks.gates.0.lock().is_empty());
    }

    #[tokio::test]
    async fn a_request_that_is_dropped_leaves_the_check_to_the_next_one() {
        let checks = Checks::new();
        let first = checks.start("a").await;
        let second = checks.start("a").await;
        first.abort();
        checks.permits.add_permits(1);
        assert_eq!(second.await.unwrap(), 2);
        assert!(checks.gates.0.lock().is_empty());
    }
}
