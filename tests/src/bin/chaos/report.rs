//! Progress and the table of a run.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::history::{Operation, Outcome, Span};
use crate::nemesis::{FaultKind, FaultRecord};
use crate::run::Verdict;

/// Returns the table: faults, operations while they lasted by outcome, and violations.
pub(crate) fn table(verdict: &Verdict, faults: &[FaultRecord]) -> String {
    let mut table = String::from(
        "| fault | times | operations | done | rejected | throttled | 502, 503, 504 | no response | slowest recovery | violations |\n|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut row = |name: &str, times: usize, spans: Option<&[Span]>, recovery: String| {
        let is_within =
            |span: Span| spans.is_none_or(|spans| spans.iter().any(|fault| fault.overlaps(span)));
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let operations = verdict
            .operations
            .iter()
            .filter(|operation| is_within(operation.span()));
        let mut total = 0;
        for operation in operations {
            total += 1;
            *counts.entry(class(operation)).or_default() += 1;
        }
        let violations = verdict
            .violations
            .iter()
            .filter(|violation| {
                is_within(Span {
                    from: violation.at,
                    to: violation.at,
                })
            })
            .count();
        let count = |class| counts.get(class).copied().unwrap_or_default();
        writeln!(
            table,
            "| {name} | {times} | {total} | {} | {} | {} | {} | {} | {recovery} | {violations} |",
            count("done"),
            count("rejected"),
            count("throttled"),
            count("unavailable"),
            count("none"),
        )
        .expect("writing to a String succeeds");
    };
    for kind in FaultKind::ALL {
        let of_kind: Vec<_> = faults.iter().filter(|fault| fault.kind == kind).collect();
        if of_kind.is_empty() {
            continue;
        }
        let spans: Vec<_> = of_kind.iter().map(|fault| fault.span).collect();
        let recovery = of_kind.iter().map(|fault| fault.recovery).max();
        let recovery = recovery.map_or_else(String::new, |recovery| format!("{recovery:.1?}"));
        row(kind.name(), of_kind.len(), Some(&spans), recovery);
    }
    row("all of the run", faults.len(), None, String::new());
    table
}

fn class(operation: &Operation) -> &'static str {
    match operation.outcome {
        Outcome::Done | Outcome::LoggedIn(_) => "done",
        Outcome::LoginTaken
        | Outcome::InvalidCredentials
        | Outcome::InvalidToken
        | Outcome::AlreadyLoggedOut => "rejected",
        Outcome::Throttled => "throttled",
        Outcome::Unavailable(_) | Outcome::Unexpected(_) => "unavailable",
        Outcome::NoResponse(_) => "none",
    }
}
