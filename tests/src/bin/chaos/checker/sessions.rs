//! Sessions of one account: no token is accepted in a request that begins after its session ended by an
//! acknowledgement, and none is rejected before a request that may end its session has begun.

use std::collections::HashMap;

use crate::history::{Action, Operation, Outcome, PasswordId, SessionId, Span, Time, Violation};

/// Result of a check.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct SessionReport {
    pub(crate) violations: Vec<Violation>,
    /// Sessions and logouts that a failover of Redis lost, as `docs/operations.md` says that it may.
    pub(crate) lost_in_failovers: usize,
}

/// Checks the operations of one account. `losses` are the spans of failovers of Redis: what was acknowledged within one
/// may be lost, except what the account itself records in PostgreSQL (the end of all sessions, a change of password, a
/// deletion).
pub(crate) fn check(operations: &[Operation], losses: &[Span]) -> SessionReport {
    let account = Account::new(operations);
    let mut report = SessionReport::default();
    for operation in operations {
        let Some(session) = operation.action.session() else {
            continue;
        };
        let Some(login) = account.logins.get(&session) else {
            continue;
        };
        if is_accepted(operation) {
            account.check_accepted(operation, session, login, losses, &mut report);
        } else if operation.outcome == Outcome::InvalidToken {
            account.check_rejected(operation, session, login, losses, &mut report);
        }
    }
    report
}

/// Returns true if the response shows that the token was accepted. A logout needs no active session.
fn is_accepted(operation: &Operation) -> bool {
    operation.outcome == Outcome::Done && !matches!(operation.action, Action::LogOut { .. })
}

struct Account<'a> {
    operations: &'a [Operation],
    /// Logins by the session that they created.
    logins: HashMap<SessionId, &'a Operation>,
    /// Password from which a change came, by the password to which it led, if it may have been carried out.
    predecessors: HashMap<PasswordId, PasswordId>,
}

impl<'a> Account<'a> {
    fn new(operations: &'a [Operation]) -> Self {
        let logins = operations.iter().filter_map(|operation| {
            let Outcome::LoggedIn(session) = operation.outcome else {
                return None;
            };
            Some((session, operation))
        });
        let predecessors = operations.iter().filter_map(|operation| {
            let Action::ChangePassword { from, to, .. } = operation.action else {
                return None;
            };
            let is_possible = operation.outcome == Outcome::Done || operation.outcome.is_unknown();
            is_possible.then_some((to, from))
        });
        Self {
            operations,
            logins: logins.collect(),
            predecessors: predecessors.collect(),
        }
    }

    /// Returns true if the account had the password `later` only after `earlier`, or if both are the same.
    fn is_after(&self, later: PasswordId, earlier: PasswordId) -> bool {
        let mut password = Some(later);
        while let Some(current) = password {
            if current == earlier {
                return true;
            }
            password = self.predecessors.get(&current).copied();
        }
        false
    }

    /// Returns the password with which the account was registered that had `password`.
    fn registered_with(&self, password: PasswordId) -> PasswordId {
        let mut password = password;
        while let Some(&from) = self.predecessors.get(&password) {
            password = from;
        }
        password
    }

    /// Returns the kind of end that `ending` acknowledged for `session`, if it did.
    fn acknowledged_end(
        &self,
        ending: &Operation,
        session: SessionId,
        login: &Operation,
    ) -> Option<End> {
        let acknowledged = ending.outcome == Outcome::Done;
        match ending.action {
            Action::LogOut { session: ended } => (ended == session
                && (acknowledged || ending.outcome == Outcome::AlreadyLoggedOut))
                .then_some(End::OfSession),
            // A login that is under way may come after it.
            Action::LogOutEverywhere { .. } => {
                (acknowledged && login.ended < ending.began).then_some(End::OfAccount)
            }
            // Logins with another password than the new one and those that followed came before the change, since no
            // password is used twice.
            Action::ChangePassword {
                session: changing,
                to,
                ..
            } => {
                let password = password_of(login)?;
                let is_same_account = self.registered_with(password) == self.registered_with(to);
                (acknowledged
                    && changing != session
                    && is_same_account
                    && !self.is_after(password, to))
                .then_some(End::OfAccount)
            }
            Action::Delete { password: deleted } => {
                let password = password_of(login)?;
                (acknowledged && self.registered_with(password) == self.registered_with(deleted))
                    .then_some(End::OfAccount)
            }
            _ => None,
        }
    }

    fn check_accepted(
        &self,
        operation: &Operation,
        session: SessionId,
        login: &Operation,
        losses: &[Span],
        report: &mut SessionReport,
    ) {
        for ending in self.operations {
            let Some(end) = self.acknowledged_end(ending, session, login) else {
                continue;
            };
            if operation.began <= ending.ended {
                continue;
            }
            if end == End::OfSession && is_within(losses, ending.span()) {
                report.lost_in_failovers += 1;
                continue;
            }
            let late = operation.began.saturating_sub(ending.ended);
            report.violations.push(Violation {
                at: operation.began,
                text: format!(
                    "token of {session:?} is accepted {late:?} after its session ended:\n  ended by {ending}\n  accepted by {operation}"
                ),
            });
            return;
        }
    }

    fn check_rejected(
        &self,
        operation: &Operation,
        session: SessionId,
        login: &Operation,
        losses: &[Span],
        report: &mut SessionReport,
    ) {
        if self.may_have_ended(session, operation.ended) {
            return;
        }
        if is_within(losses, login.span()) {
            report.lost_in_failovers += 1;
            return;
        }
        report.violations.push(Violation {
            at: operation.began,
            text: format!(
                "token of {session:?} is rejected though nothing ended its session:\n  created by {login}\n  rejected by {operation}"
            ),
        });
    }

    /// Returns true if a request that may end `session` began before `time`, whatever its outcome.
    fn may_have_ended(&self, session: SessionId, time: Time) -> bool {
        self.operations.iter().any(|operation| {
            let ends = match operation.action {
                Action::LogOut { session: ended } => ended == session,
                Action::ChangePassword {
                    session: changing, ..
                } => changing != session,
                Action::LogOutEverywhere { .. } | Action::Delete { .. } => true,
                _ => false,
            };
            ends && operation.began <= time
        })
    }
}

/// What an acknowledged end covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// One session, of which Redis has the only record.
    OfSession,
    /// Sessions that the account in PostgreSQL ends too.
    OfAccount,
}

fn password_of(login: &Operation) -> Option<PasswordId> {
    match login.action {
        Action::LogIn { password } => Some(password),
        _ => None,
    }
}

fn is_within(losses: &[Span], span: Span) -> bool {
    losses.iter().any(|loss| loss.overlaps(span))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Decision, GatewayId};

    const A: PasswordId = PasswordId(1);
    const B: PasswordId = PasswordId(2);
    const FIRST: SessionId = SessionId(1);
    const SECOND: SessionId = SessionId(2);

    fn operation(span: (u64, u64), action: Action, outcome: Outcome) -> Operation {
        Operation {
            gateway: GatewayId(0),
            began: Time::from_secs(span.0),
            ended: Time::from_secs(span.1),
            action,
            outcome,
        }
    }

    fn log_in(span: (u64, u64), password: PasswordId, session: SessionId) -> Operation {
        operation(span, Action::LogIn { password }, Outcome::LoggedIn(session))
    }

    fn use_token(span: (u64, u64), session: SessionId, outcome: Outcome) -> Operation {
        let decision = Decision::Gateway;
        operation(span, Action::UseToken { session, decision }, outcome)
    }

    fn log_out(span: (u64, u64), session: SessionId, outcome: Outcome) -> Operation {
        operation(span, Action::LogOut { session }, outcome)
    }

    fn log_out_everywhere(span: (u64, u64), session: SessionId) -> Operation {
        operation(span, Action::LogOutEverywhere { session }, Outcome::Done)
    }

    fn change(span: (u64, u64), session: SessionId) -> Operation {
        let (from, to) = (A, B);
        operation(
            span,
            Action::ChangePassword { session, from, to },
            Outcome::Done,
        )
    }

    fn violations(operations: &[Operation]) -> usize {
        check(operations, &[]).violations.len()
    }

    #[test]
    fn an_accepted_token_after_a_logout_is_found() {
        for outcome in [Outcome::Done, Outcome::AlreadyLoggedOut] {
            let operations = [
                log_in((0, 1), A, FIRST),
                log_out((2, 3), FIRST, outcome),
                use_token((4, 5), FIRST, Outcome::Done),
            ];
            assert_eq!(violations(&operations), 1);
        }
    }

    #[test]
    fn a_request_that_began_before_the_acknowledgement_may_be_accepted() {
        let operations = [
            log_in((0, 1), A, FIRST),
            log_out((2, 5), FIRST, Outcome::Done),
            use_token((4, 7), FIRST, Outcome::Done),
        ];
        assert_eq!(violations(&operations), 0);
    }

    #[test]
    fn a_logout_without_acknowledgement_promises_nothing() {
        let operations = [
            log_in((0, 1), A, FIRST),
            log_out((2, 3), FIRST, Outcome::Unavailable(503)),
            use_token((4, 5), FIRST, Outcome::InvalidToken),
            use_token((6, 7), FIRST, Outcome::Done),
        ];
        assert_eq!(violations(&operations), 0);
    }

    #[test]
    fn a_token_of_another_session_stays_valid() {
        let operations = [
            log_in((0, 1), A, FIRST),
            log_in((0, 1), A, SECOND),
            log_out((2, 3), FIRST, Outcome::Done),
            use_token((4, 5), SECOND, Outcome::Done),
        ];
        assert_eq!(violations(&operations), 0);
    }

    #[test]
    fn a_logout_everywhere_ends_sessions_that_were_created_before_it() {
        let ended = [
            log_in((0, 1), A, FIRST),
            log_in((0, 1), A, SECOND),
            log_out_everywhere((2, 3), SECOND),
            use_token((4, 5), FIRST, Outcome::Done),
            use_token((4, 5), SECOND, Outcome::Done),
        ];
        assert_eq!(violations(&ended), 2);
        let concurrent = [
            log_in((0, 1), A, SECOND),
            log_in((1, 3), A, FIRST),
            log_out_everywhere((2, 3), SECOND),
            use_token((4, 5), FIRST, Outcome::Done),
        ];
        assert_eq!(violations(&concurrent), 0);
    }

    #[test]
    fn a_change_of_password_ends_the_other_sessions_of_earlier_passwords() {
        let operations = [
            log_in((0, 1), A, FIRST),
            // Concurrent with the change, so before it.
            log_in((1, 4), A, SECOND),
            change((2, 3), FIRST),
            use_token((5, 6), SECOND, Outcome::Done),
            use_token((5, 6), FIRST, Outcome::Done),
        ];
        assert_eq!(violations(&operations), 1);
        let later = [
            log_in((0, 1), A, FIRST),
            change((2, 5), FIRST),
            log_in((3, 4), B, SECOND),
            use_token((6, 7), SECOND, Outcome::Done),
        ];
        assert_eq!(violations(&later), 0);
    }

    #[test]
    fn a_deletion_ends_the_sessions_of_the_account_but_not_of_its_successor() {
        let delete = operation((2, 3), Action::Delete { password: A }, Outcome::Done);
        let operations = [
            log_in((0, 1), A, FIRST),
            delete.clone(),
            use_token((4, 5), FIRST, Outcome::Done),
        ];
        assert_eq!(violations(&operations), 1);
        let successor = [
            delete,
            log_in((4, 5), B, SECOND),
            use_token((6, 7), SECOND, Outcome::Done),
        ];
        assert_eq!(violations(&successor), 0);
    }

    #[test]
    fn a_rejected_token_of_an_active_session_is_found() {
        let operations = [
            log_in((0, 1), A, FIRST),
            use_token((2, 3), FIRST, Outcome::InvalidToken),
            log_out((4, 5), FIRST, Outcome::Done),
        ];
        assert_eq!(violations(&operations), 1);
    }

    #[test]
    fn a_failover_may_lose_what_redis_alone_records() {
        let operations = [
            log_in((0, 1), A, FIRST),
            log_in((10, 11), A, SECOND),
            log_out((10, 11), FIRST, Outcome::Done),
            use_token((20, 21), FIRST, Outcome::Done),
            use_token((20, 21), SECOND, Outcome::InvalidToken),
        ];
        let (from, to) = (Time::from_secs(10), Time::from_secs(12));
        let report = check(&operations, &[Span { from, to }]);
        assert_eq!((report.violations.len(), report.lost_in_failovers), (0, 2));
        assert_eq!(violations(&operations), 2);
    }

    #[test]
    fn a_failover_loses_no_end_of_all_sessions() {
        let operations = [
            log_in((0, 1), A, FIRST),
            log_out_everywhere((10, 11), FIRST),
            use_token((20, 21), FIRST, Outcome::Done),
        ];
        let (from, to) = (Time::from_secs(10), Time::from_secs(12));
        assert_eq!(check(&operations, &[Span { from, to }]).violations.len(), 1);
    }
}
