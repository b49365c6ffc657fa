//! Lua scripts that the store runs, each in one atomic step, and their arguments and replies.

use std::sync::LazyLock;

use fred::types::Value;
use fred::types::scripts::Script;

use crate::config::RateLimitAlgorithm;
use crate::features::rate_limit::shared::{
    LeaseIdentity, LeaseTerms, ScriptArguments, ScriptReply,
};

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

/// Returns the arguments as text, in the order of `common.lua`.
pub(super) fn to_values(arguments: &ScriptArguments) -> Vec<String> {
    let ScriptArguments {
        terms,
        gateways,
        need,
        want,
        report,
    } = *arguments;
    let identity = report.map_or_else(LeaseIdentity::default, |report| report.identity);
    let spent = report.map_or(0, |report| report.spent.total());
    let kept = report.map_or(0, |report| report.kept);
    let mut values = vec![
        terms.limit().to_string(),
        terms.period().to_string(),
        terms.short_lease_time().as_micros().to_string(),
        terms.lease_time().as_micros().to_string(),
        gateways.max(1).to_string(),
        need.to_string(),
        want.to_string(),
        identity.incarnation.to_string(),
        identity.slot.to_string(),
        spent.to_string(),
        kept.to_string(),
        arguments.returned().to_string(),
    ];
    for (age, units) in arguments.ages_of_spent() {
        values.extend([age.to_string(), units.to_string()]);
    }
    values
}

/// Parses a reply. Returns `None` if none of the scripts produces it.
pub(super) fn parse_reply(value: Value) -> Option<ScriptReply> {
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
        kept,
    ] = numbers[..]
    else {
        return None;
    };
    Some(ScriptReply {
        now,
        granted,
        remaining,
        valid,
        retry_after,
        reset,
        identity: LeaseIdentity { incarnation, slot },
        first_departure_ns,
        kept,
    })
}
