//! Arguments and reply of a script of the store, which executes one command in one atomic step.

use std::time::Duration;

use super::command::{Grant, LeaseIdentity, LeaseReport, StoreCommand};
use super::terms::LeaseTerms;
use crate::runtime::clock::Instant;

/// Arguments of a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ScriptArguments {
    pub(crate) terms: LeaseTerms,
    /// Number of gateways that share the store.
    pub(crate) gateways: u32,
    /// Units that requests wait for.
    pub(crate) need: u32,
    /// Units that the gateway would like to have.
    pub(crate) want: u32,
    pub(crate) report: Option<LeaseReport>,
}

impl ScriptArguments {
    pub(crate) fn new(command: &StoreCommand, gateways: u32) -> Self {
        Self {
            terms: command.terms,
            gateways,
            need: command.need(),
            want: command.want,
            report: command.report,
        }
    }

    /// Returns the number of units that are returned.
    pub(crate) fn returned(&self) -> u32 {
        self.report.map_or(0, |report| report.returned)
    }

    /// Returns the ages of spent units in microseconds, with their number, oldest first.
    pub(crate) fn ages_of_spent(&self) -> impl Iterator<Item = (u64, u32)> {
        let interval = self.terms.spent_interval();
        let ages = move |report: LeaseReport| report.spent.ages(interval, report.made);
        self.report.into_iter().flat_map(ages)
    }
}

/// Reply of a script. Times are in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ScriptReply {
    /// Time of the store.
    pub(crate) now: i64,
    pub(crate) granted: i64,
    pub(crate) remaining: i64,
    pub(crate) valid: i64,
    pub(crate) retry_after: i64,
    pub(crate) reset: i64,
    pub(crate) identity: LeaseIdentity,
    pub(crate) first_departure_ns: i64,
    /// Units of the lease before that are in the new one.
    pub(crate) kept: i64,
}

impl ScriptReply {
    /// Returns the grant to a command that was sent at `sent`. Negative numbers, which no script replies with, are taken
    /// for zero.
    pub(crate) fn to_grant(
        self,
        arguments: &ScriptArguments,
        sent: Instant,
        received: Instant,
    ) -> Grant {
        let units = |number: i64| u32::try_from(number.max(0)).unwrap_or(u32::MAX);
        let microseconds = |number: i64| Duration::from_micros(number.max(0).unsigned_abs());
        Grant {
            sent,
            received,
            need: arguments.need,
            want: arguments.want,
            granted: units(self.granted),
            kept: units(self.kept),
            remaining: units(self.remaining),
            valid: microseconds(self.valid),
            retry_after: microseconds(self.retry_after),
            reset: microseconds(self.reset),
            identity: self.identity,
            first_departure: Duration::from_nanos(self.first_departure_ns.max(0).unsigned_abs()),
        }
    }
}
