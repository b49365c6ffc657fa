//! Retry budget, as in Finagle and Linkerd: each request deposits tokens, each retry withdraws some.
//!
//! Invariant: retries never exceed a fifth of the requests plus the tokens that were saved, so that they
//! cannot amplify an overload. Retries after connection failures do not use the budget: they cause no
//! load on an endpoint that is unavailable.

use crate::runtime::sync::{AtomicI64, Ordering};

/// Tokens that a request deposits.
const TOKENS_PER_REQUEST: i64 = 1;
/// Tokens that a retry withdraws: retries are at most a fifth of the requests.
const RETRY_COST: i64 = 5;
/// Most tokens that are saved, so that a few failures at low load can be retried.
const MAX_BALANCE: i64 = 10 * RETRY_COST;

/// Balance of the tokens of one route.
#[derive(Debug)]
pub(crate) struct RetryBudget(AtomicI64);

impl Default for RetryBudget {
    fn default() -> Self {
        Self(AtomicI64::new(MAX_BALANCE))
    }
}

impl RetryBudget {
    /// Deposits the tokens of a request.
    pub(crate) fn deposit(&self) {
        if self.0.load(Ordering::Relaxed) < MAX_BALANCE {
            self.0.fetch_add(TOKENS_PER_REQUEST, Ordering::Relaxed);
        }
    }

    /// Withdraws the tokens of a retry. Returns false and withdraws nothing if there are too few.
    pub(crate) fn try_withdraw(&self) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |balance| {
                (balance >= RETRY_COST).then_some(balance - RETRY_COST)
            })
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_at_most_a_fifth_of_the_requests() {
        let budget = RetryBudget::default();
        let saved = (0..100).filter(|_| budget.try_withdraw()).count();
        assert_eq!(saved, 10);
        let mut retries = 0;
        for _ in 0..1000 {
            budget.deposit();
            retries += u32::from(budget.try_withdraw());
        }
        assert_eq!(retries, 200);
    }
}
