//! Linearizability of one account: whether there is an order of its registrations, logins, changes of password and
//! deletions that explains every response, in which each takes effect between its begin and its end (Herlihy and Wing
//! 1990). The search is that of Wing and Gong (1993), which remembers the configurations that it has visited as Lowe
//! (2017) proposes.
//!
//! A request without a known outcome takes effect at any time after its begin, or never.

use std::collections::HashSet;

use crate::history::{Action, Operation, Outcome, PasswordId, Time, Violation};

/// Most operations of an account: one bit of a configuration each.
pub(crate) const MAX_OPERATIONS: usize = 128;

/// Account as a sequential object: absent, or present with a password.
type Account = Option<PasswordId>;

/// What an operation does to the account, and what it says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Requires one state and replaces it by another one.
    Replace(Account, Account),
    /// Requires that the account exists.
    Exists,
    /// Requires any other state.
    Not(PasswordId),
}

impl Step {
    fn apply(self, account: Account) -> Option<Account> {
        match self {
            Self::Replace(before, after) => (account == before).then_some(after),
            Self::Exists => account.is_some().then_some(account),
            Self::Not(password) => (account != Some(password)).then_some(account),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Interval {
    began: Time,
    /// `None` if the outcome is unknown: the operation may take effect at any time, or never.
    ended: Option<Time>,
    step: Step,
}

/// Returns what an operation says about the account, `None` if it says nothing.
fn interval(operation: &Operation) -> Option<Interval> {
    let is_unknown = operation.outcome.is_unknown();
    let change = |before, after| match operation.outcome {
        Outcome::Done => Some(Step::Replace(before, after)),
        _ => is_unknown.then_some(Step::Replace(before, after)),
    };
    let is_rejected = operation.outcome == Outcome::InvalidCredentials;
    let step = match operation.action {
        Action::Register { password } if operation.outcome != Outcome::LoginTaken => {
            change(None, Some(password))
        }
        Action::Register { .. } => Some(Step::Exists),
        Action::LogIn { password } => match operation.outcome {
            Outcome::LoggedIn(_) => Some(Step::Replace(Some(password), Some(password))),
            Outcome::InvalidCredentials => Some(Step::Not(password)),
            _ => None,
        },
        Action::ChangePassword { from, .. } | Action::Delete { password: from } if is_rejected => {
            Some(Step::Not(from))
        }
        Action::ChangePassword { from, to, .. } => change(Some(from), Some(to)),
        Action::Delete { password } => change(Some(password), None),
        _ => None,
    }?;
    Some(Interval {
        began: operation.began,
        ended: (!is_unknown).then_some(operation.ended),
        step,
    })
}

/// Returns a violation if no order explains the responses of an account that did not exist before.
///
/// # Panics
/// Panics if there are more than [`MAX_OPERATIONS`] operations.
pub(crate) fn check(operations: &[Operation]) -> Option<Violation> {
    let mut intervals: Vec<_> = operations.iter().filter_map(interval).collect();
    intervals.sort_by_key(|interval| interval.began);
    assert!(intervals.len() <= MAX_OPERATIONS, "the account is too busy");
    let mut search = Search {
        intervals,
        visited: HashSet::new(),
        furthest: Time::ZERO,
    };
    (!search.explains(0, None)).then(|| Violation {
        at: search.furthest,
        text: format!(
            "account is not linearizable: no order explains the responses up to {:.4} s",
            search.furthest.as_secs_f64()
        ),
    })
}

struct Search {
    intervals: Vec<Interval>,
    /// Configurations from which no order explains the rest.
    visited: HashSet<(u128, Account)>,
    /// Latest end before which an operation has to take effect that none of the orders explained.
    furthest: Time,
}

impl Search {
    /// Returns true if the operations that are not in the set `done` can follow on `account`.
    fn explains(&mut self, done: u128, account: Account) -> bool {
        let open = |index: usize| done & (1 << index) == 0;
        let first_end = (0..self.intervals.len())
            .filter(|&index| open(index))
            .filter_map(|index| self.intervals[index].ended)
            .min();
        let Some(first_end) = first_end else {
            return true;
        };
        if !self.visited.insert((done, account)) {
            return false;
        }
        self.furthest = self.furthest.max(first_end);
        for index in 0..self.intervals.len() {
            let Interval { began, step, .. } = self.intervals[index];
            if began > first_end {
                break;
            }
            if open(index)
                && let Some(next) = step.apply(account)
                && self.explains(done | (1 << index), next)
            {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{GatewayId, SessionId};

    const A: PasswordId = PasswordId(1);
    const B: PasswordId = PasswordId(2);
    const SESSION: SessionId = SessionId(1);

    fn operation(span: (u64, u64), action: Action, outcome: Outcome) -> Operation {
        Operation {
            gateway: GatewayId(0),
            began: Time::from_secs(span.0),
            ended: Time::from_secs(span.1),
            action,
            outcome,
        }
    }

    fn register(span: (u64, u64), outcome: Outcome) -> Operation {
        operation(span, Action::Register { password: A }, outcome)
    }

    fn log_in(span: (u64, u64), password: PasswordId, outcome: Outcome) -> Operation {
        operation(span, Action::LogIn { password }, outcome)
    }

    fn change(span: (u64, u64), outcome: Outcome) -> Operation {
        let action = Action::ChangePassword {
            session: SESSION,
            from: A,
            to: B,
        };
        operation(span, action, outcome)
    }

    fn delete(span: (u64, u64), outcome: Outcome) -> Operation {
        operation(span, Action::Delete { password: A }, outcome)
    }

    fn unavailable() -> Outcome {
        Outcome::Unavailable(503)
    }

    fn logged_in() -> Outcome {
        Outcome::LoggedIn(SESSION)
    }

    fn is_linearizable(operations: &[Operation]) -> bool {
        check(operations).is_none()
    }

    #[test]
    fn a_sequence_is_explained() {
        assert!(is_linearizable(&[
            log_in((0, 1), A, Outcome::InvalidCredentials),
            register((2, 3), Outcome::Done),
            register((4, 5), Outcome::LoginTaken),
            log_in((6, 7), A, logged_in()),
            change((8, 9), Outcome::Done),
            log_in((10, 11), A, Outcome::InvalidCredentials),
            log_in((12, 13), B, logged_in()),
            delete((14, 15), Outcome::InvalidCredentials),
        ]));
    }

    #[test]
    fn a_lost_account_is_found() {
        assert!(!is_linearizable(&[
            register((0, 1), Outcome::Done),
            log_in((2, 3), A, Outcome::InvalidCredentials),
        ]));
    }

    #[test]
    fn a_lost_change_of_password_is_found() {
        assert!(!is_linearizable(&[
            register((0, 1), Outcome::Done),
            change((2, 3), Outcome::Done),
            log_in((4, 5), A, logged_in()),
        ]));
    }

    #[test]
    fn an_account_that_is_registered_twice_is_found() {
        assert!(!is_linearizable(&[
            register((0, 1), Outcome::Done),
            register((0, 1), Outcome::Done),
        ]));
    }

    #[test]
    fn a_registration_that_met_only_itself_is_found() {
        assert!(!is_linearizable(&[register((0, 1), Outcome::LoginTaken)]));
    }

    #[test]
    fn concurrent_operations_may_take_effect_in_either_order() {
        for password in [A, B] {
            assert!(is_linearizable(&[
                register((0, 1), Outcome::Done),
                change((2, 5), Outcome::Done),
                log_in((3, 4), password, logged_in()),
            ]));
        }
    }

    #[test]
    fn no_two_readers_see_opposite_orders() {
        assert!(!is_linearizable(&[
            register((0, 1), Outcome::Done),
            change((2, 9), Outcome::Done),
            log_in((3, 4), B, logged_in()),
            log_in((5, 6), A, logged_in()),
        ]));
    }

    #[test]
    fn an_operation_without_outcome_may_take_effect_late_or_never() {
        for (password, outcome) in [
            (A, Outcome::InvalidCredentials),
            (A, logged_in()),
            (B, logged_in()),
        ] {
            assert!(is_linearizable(&[
                register((0, 1), Outcome::Done),
                change((2, 3), unavailable()),
                log_in((4, 5), A, logged_in()),
                log_in((6, 7), password, outcome),
            ]));
        }
    }

    #[test]
    fn an_operation_without_outcome_takes_effect_once() {
        assert!(!is_linearizable(&[
            register((0, 1), Outcome::Done),
            change((2, 3), unavailable()),
            log_in((4, 5), B, logged_in()),
            log_in((6, 7), A, logged_in()),
        ]));
    }

    #[test]
    fn an_operation_takes_no_effect_before_its_begin() {
        assert!(!is_linearizable(&[
            register((0, 1), Outcome::Done),
            log_in((2, 3), B, logged_in()),
            change((4, 5), unavailable()),
        ]));
    }

    #[test]
    fn many_operations_without_outcome_are_searched_quickly() {
        let mut operations = vec![register((0, 1), Outcome::Done)];
        for second in 2..60 {
            operations.push(change((second, second + 1), unavailable()));
            operations.push(log_in((second, second + 1), A, logged_in()));
        }
        assert!(is_linearizable(&operations));
        operations.push(log_in((70, 71), A, Outcome::InvalidCredentials));
        operations.push(log_in((72, 73), B, Outcome::InvalidCredentials));
        assert!(!is_linearizable(&operations));
    }
}
