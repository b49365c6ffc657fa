//! Deterministic simulation of the protocol: participants, clients, network, clocks, accounts and the store in virtual
//! time, in one thread, with a seed that determines every delay and every fault (as `FoundationDB` and `TigerBeetle` test).
//!
//! What runs is the code of this crate apart from [`Subscriber`](crate::Subscriber), which connects it to Redis: cache, lease,
//! participant, tracker, messages and check gate. Around it, models of the rest:
//!
//! - `store.rs`: scripts that delete and publish in one step, pub/sub that delivers in order, a failover that loses the last
//!   changes, a primary that clients reach after it was replaced, and accounts with their cutoffs.
//! - `network.rs`: connections with delays, partitions of one or both directions, resets, and ends that nobody is told of.
//! - `process.rs`: what replicas and gateways do with the protocol. Processes are paused, killed and started again; their
//!   clocks run at different rates, and their wall clocks are stepped.
//! - `scenario.rs`: clients and faults. `history.rs`: the checker.
//!
//! Invariants: a check of a token that begins after the end of its session was acknowledged accepts it nowhere, except that a
//! failover may lose the end of a single session, that a gateway may use for 30 seconds what it remembers
//! if a command ended the sessions of an account without the store, and that the session keeps its tokens in which the
//! password is being changed, and therefore verified, while all sessions of its account are ended. An end is acknowledged within a lease from the
//! reply of the store. Once the faults are over, every participant uses its cache again and acknowledges at once.
//!
//! Each rule of the protocol has a [`Variant`] that lacks it. The simulation has to find it, so that it is known
//! to search where such faults are.

mod executor;
mod history;
mod network;
mod process;
mod scenario;
mod store;
mod world;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{env, thread};

use history::{Counts, History};
use parking_lot::Mutex;
use scenario::run;

/// Number of seeds, unless `SIMULATION_SEEDS` has another.
const DEFAULT_SEEDS: u64 = 300;
/// Number of seeds within which a missing rule has to be found.
const MAX_SEEDS_TO_FIND: u64 = 10_000;

/// Protocol that is simulated: that of the programs, or one that lacks a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Correct,
    /// An end is acknowledged without waiting for the participants.
    NoWait,
    /// A lease runs from the receipt of a heartbeat.
    LeaseFromReceipt,
    /// A lookup is cached although an invalidation arrived meanwhile.
    NoVersionCheck,
    /// A new subscription neither clears the cache nor ends the lease.
    ResubscribesSilently,
    /// Messages that were dropped are not noticed.
    IgnoresLostMessages,
    /// The sender does not wait for the leases that may be unknown to it in the first second of its own subscription.
    WaitsForKnownParticipantsOnly,
    /// A gateway caches what a replica says soon after an invalidation.
    GatewayCachesLikeReplica,
    /// A request uses the result of a check that began before it.
    GateSharesChecksUnderWay,
    /// The store publishes an invalidation before it deletes the session.
    PublishesBeforeDeletion,
    /// The store delivers messages in another order.
    ReordersMessages,
    /// The monotonic clock stops while a process is paused.
    ClockStopsWhilePaused,
    /// The rates of clocks differ by more than the margin of leases.
    ClocksDeviateFurther,
    /// A login on a replica whose clock is behind hides an earlier one from the cutoff of its account.
    LastLoginGoesBack,
    /// The session that a change of the password has kept may be later than the next cutoff of its account.
    KeptSessionOutlivesCutoffs,
    /// Heartbeats and invalidations need no server that accepts writes.
    PublishesWithoutWrite,
    /// Heartbeats are published on the connection for commands, and may return through a replica of its server.
    HeartbeatsOnOtherConnection,
    /// The first heartbeat that returns after an interruption renews the lease.
    TrustsFirstHeartbeat,
    /// A replica asks a store once that has not responded for a while.
    AsksOnce,
}

const BROKEN: [Variant; 18] = [
    Variant::NoWait,
    Variant::LeaseFromReceipt,
    Variant::NoVersionCheck,
    Variant::ResubscribesSilently,
    Variant::IgnoresLostMessages,
    Variant::WaitsForKnownParticipantsOnly,
    Variant::GatewayCachesLikeReplica,
    Variant::GateSharesChecksUnderWay,
    Variant::PublishesBeforeDeletion,
    Variant::ReordersMessages,
    Variant::ClockStopsWhilePaused,
    Variant::ClocksDeviateFurther,
    Variant::LastLoginGoesBack,
    Variant::KeptSessionOutlivesCutoffs,
    Variant::PublishesWithoutWrite,
    Variant::HeartbeatsOnOtherConnection,
    Variant::TrustsFirstHeartbeat,
    Variant::AsksOnce,
];

/// Runs the seeds on all cores. Returns the sums of the counts, and the first seed that violates an invariant.
fn run_all(seeds: Range<u64>, variant: Variant) -> (Counts, Option<u64>) {
    let (next, failed) = (AtomicU64::new(seeds.start), AtomicU64::new(u64::MAX));
    let sums = Mutex::new(Counts::new());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || failed.load(Ordering::Relaxed) < seed {
                return;
            }
            let report = run(seed, variant, History::default());
            let mut sums = sums.lock();
            for (name, count) in report.counts {
                *sums.entry(name).or_default() += count;
            }
            if !report.violations.is_empty() {
                failed.fetch_min(seed, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner();
    (sums.into_inner(), (failed != u64::MAX).then_some(failed))
}

/// Returns a number from the environment.
fn setting(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// Panics with the history of a seed if it violates an invariant. Returns the history.
fn expect_no_violation(seed: u64) -> String {
    let report = run(seed, Variant::Correct, History::recorded());
    assert!(
        report.violations.is_empty(),
        "{}\nseed {seed}: {:#?}\nrepeat: make simulate SEED={seed}",
        report.history,
        report.violations
    );
    report.history
}

#[test]
#[expect(clippy::print_stdout, reason = "shown by make simulate")]
fn no_token_is_accepted_after_the_end_of_its_session_was_acknowledged() {
    if let Some(seed) = setting("SIMULATION_SEED") {
        return println!("{}", expect_no_violation(seed));
    }
    let seeds = setting("SIMULATION_SEEDS").unwrap_or(DEFAULT_SEEDS);
    let (counts, failed) = run_all(0..seeds, Variant::Correct);
    for (name, count) in &counts {
        println!("{count:12} {name}");
    }
    if let Some(seed) = failed {
        expect_no_violation(seed);
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "shown with --nocapture")]
fn the_simulation_finds_each_rule_that_is_missing() {
    let mut unfound = Vec::new();
    for variant in BROKEN {
        match run_all(0..MAX_SEEDS_TO_FIND, variant).1 {
            Some(seed) => println!("{variant:?}: found by seed {seed}"),
            None => unfound.push(variant),
        }
    }
    assert_eq!(unfound, []);
}

#[test]
fn a_seed_determines_the_whole_course() {
    let [one, two] = [(); 2].map(|()| run(1, Variant::Correct, History::recorded()).history);
    assert!(one == two && !one.is_empty());
}
