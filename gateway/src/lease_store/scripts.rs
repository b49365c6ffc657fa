//! Lua scripts that the store runs, each in one atomic step, and their arguments and replies.

use std::sync::LazyLock;
use std::time::Duration;

use fred::types::Value;
use fred::types::scripts::Script;

use crate::config::RateLimitAlgorithm;
use crate::features::rate_limit::shared::{Grant, LeaseIdentity, LeaseTerms, StoreCommand};
use crate::runtime::clock::Instant;

/// Joins the part that all scripts share and that of an algorithm.
macro_rules! script {
    ($file:literal) => {
        LazyLock::new(|| Script::from_lua(concat!(include_str!("common.lua"), include_str!($file))))
    };
}

static FIXED_WINDOW: LazyLock<Script> = script!("fixed_window.lua");
static SLIDING_WINDOW: LazyLock<Script> = script!("sliding_window.lua");
static BUCKET: LazyLock<Script> = script!("bucket.lua");
pub(super) static HEARTBEAT: LazyLock<Script> =
    LazyLock::new(|| Script::from_lua(include_str!("heartbeat.lua")));

/// Returns the scripts that the store has to know.
pub(super) fn all() -> [&'static Script; 3] {
    [&FIXED_WINDOW, &SLIDING_WINDOW, &BUCKET]
}

/// Returns the script of an algorithm.
pub(super) fn of(terms: LeaseTerms) -> &'static Script {
    match terms.algorithm {
        RateLimitAlgorithm::FixedWindow => &FIXED_WINDOW,
        RateLimitAlgorithm::SlidingWindow => &SLIDING_WINDOW,
        RateLimitAlgorithm::TokenBucket | RateLimitAlgorithm::LeakyBucket => &BUCKET,
    }
}

/// Arguments of a script, in the order of `common.lua`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CommandArguments {
    pub(super) terms: LeaseTerms,
    pub(super) gateways: u32,
    pub(super) need: u32,
    pub(super) want: u32,
    pub(super) returned: u32,
    pub(super) identity: LeaseIdentity,
}

impl CommandArguments {
    pub(super) fn new(command: &StoreCommand, gateways: u32) -> Self {
        let give_back = command.give_back;
        Self {
            terms: command.terms,
            gateways,
            need: command.need(),
            want: command.want,
            returned: give_back.map_or(0, |units| units.units),
            identity: give_back.map_or_else(LeaseIdentity::default, |units| units.identity),
        }
    }

    /// Returns the arguments as text.
    pub(super) fn to_values(self) -> Vec<String> {
        vec![
            self.terms.limit().to_string(),
            self.terms.period().to_string(),
            self.terms.lease_time().as_micros().to_string(),
            self.gateways.max(1).to_string(),
            self.need.to_string(),
            self.want.to_string(),
            self.returned.to_string(),
            self.identity.incarnation.to_string(),
            self.identity.slot.to_string(),
        ]
    }
}

/// Reply of a script. Times are in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    /// Time of the store.
    pub(super) now: i64,
    pub(super) granted: i64,
    pub(super) remaining: i64,
    pub(super) valid: i64,
    pub(super) retry_after: i64,
    pub(super) reset: i64,
    pub(super) identity: LeaseIdentity,
    pub(super) first_departure_ns: i64,
}

impl Reply {
    /// Parses a reply. Returns `None` if none of the scripts produces it.
    pub(super) fn parse(value: Value) -> Option<Self> {
        let numbers: Vec<i64> = value.convert().ok()?;
        let [
            now,
            granted,
            remaining,
            valid,
            retry_after,
            reset,
            incarnation,
            slot,
            first_departure_ns,
        ] = numbers[..]
        else {
            return None;
        };
        Some(Self {
            now,
            granted,
            remaining,
            valid,
            retry_after,
            reset,
            identity: LeaseIdentity { incarnation, slot },
            first_departure_ns,
        })
    }

    /// Returns what the store granted to a command that was sent at `sent` for `need` requests.
    pub(super) fn to_grant(self, need: u32, sent: Instant, received: Instant) -> Grant {
        let units = |number: i64| u32::try_from(number.max(0)).unwrap_or(u32::MAX);
        let microseconds = |number: i64| Duration::from_micros(number.max(0).unsigned_abs());
        Grant {
            sent,
            received,
            need,
            granted: units(self.granted),
            remaining: units(self.remaining),
            valid: microseconds(self.valid),
            retry_after: microseconds(self.retry_after),
            reset: microseconds(self.reset),
            identity: self.identity,
            first_departure: Duration::from_nanos(self.first_departure_ns.max(0).unsigned_abs()),
        }
    }
}
