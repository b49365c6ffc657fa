//! The lease protocol as a whole: several gateways and the model of the store, with delays, lost messages,
//! crashes, pauses and clocks that differ.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::command::StoreCommand;
use super::script::{ScriptArguments, ScriptReply};
use super::store_model::ModelStore;
use super::table::{LeaseTable, TableDecision};
use super::*;
use crate::config::RateLimitAlgorithm::{
    self, FixedWindow, LeakyBucket, SlidingWindow, TokenBucket,
};
use crate::features::rate_limit::algorithm::{AlgorithmDecision, QuotaPolicy, QuotaState};
use crate::features::rate_limit::token_bucket;
use crate::runtime::clock::nanoseconds;

const MICROSECOND: u64 = 1000;
const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
/// Longest time in which a request waits, as in the configuration by default.
const TIMEOUT: u64 = 50 * MILLISECOND;
const ID: u64 = 7;
/// Start of the simulation, after the epoch of every clock.
const START: u64 = 1000 * SECOND;

/// Fate of a command.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Delivered { there: u64, back: u64 },
    CommandLost,
    ReplyLost { there: u64 },
}

/// Event of a history.
#[derive(Debug, Clone, Copy)]
enum Step {
    Request {
        gateway: usize,
    },
    /// Requests at one instant.
    Burst {
        gateway: usize,
        count: u32,
    },
    Wait(u64),
    /// Requests one after another, with sweeps in between.
    Steady {
        gateway: usize,
        interval: u64,
        count: u32,
    },
    Sweep {
        gateway: usize,
    },
    Crash {
        gateway: usize,
    },
    Pause {
        gateway: usize,
        time: u64,
    },
    Drain {
        gateway: usize,
    },
    SetStoreClockBack(u64),
}

/// Message on its way.
#[derive(Debug)]
enum Message {
    Command {
        gateway: usize,
        generation: u32,
        sent: Instant,
        command: StoreCommand,
        back: Option<u64>,
    },
    Reply {
        gateway: usize,
        generation: u32,
        sent: Instant,
        arguments: Box<ScriptArguments>,
        command: StoreCommand,
        reply: ScriptReply,
    },
}

#[derive(Debug)]
struct Scheduled(u64, u64, Message);

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// Gateway of the simulation.
struct SimulatedGateway {
    table: LeaseTable,
    /// Processes so far.
    generation: u32,
    /// Difference of its clock, and of its rate in parts per million.
    offset: u64,
    rate_ppm: i64,
    paused_until: u64,
    /// Instants until which requests wait.
    waiting: Vec<u64>,
    prefetch: Prefetch,
}

impl SimulatedGateway {
    fn clock(&self, now: u64) -> Instant {
        let elapsed = i128::from(now - START);
        let skew = elapsed * i128::from(self.rate_ppm) / 1_000_000;
        Instant(self.offset + u64::try_from(elapsed + skew).unwrap())
    }
}

struct Simulation {
    terms: LeaseTerms,
    now: u64,
    store: ModelStore,
    store_clock_offset: i64,
    gateways: Vec<SimulatedGateway>,
    messages: BinaryHeap<Reverse<Scheduled>>,
    sequence: u64,
    fates: Vec<Fate>,
    commands: u64,
    /// Instants at which requests passed, with their departure.
    passed: Vec<(u64, u64)>,
    rejected: u64,
    /// Beginnings of fixed windows.
    windows: Vec<u64>,
}

impl Simulation {
    fn new(terms: LeaseTerms, gateways: &[(u64, i64)], fates: Vec<Fate>) -> Self {
        Self {
            terms,
            now: START,
            store: ModelStore::default(),
            store_clock_offset: 0,
            gateways: gateways
                .iter()
                .map(|(offset, rate_ppm)| SimulatedGateway {
                    table: LeaseTable::new(),
                    generation: 0,
                    offset: *offset,
                    rate_ppm: *rate_ppm,
                    paused_until: 0,
                    waiting: Vec::new(),
                    prefetch: Prefetch::Permitted,
                })
                .collect(),
            messages: BinaryHeap::new(),
            sequence: 0,
            fates,
            commands: 0,
            passed: Vec::new(),
            rejected: 0,
            windows: Vec::new(),
        }
    }

    fn index(&self, gateway: usize) -> usize {
        gateway % self.gateways.len()
    }

    fn store_time(&self) -> i64 {
        i64::try_from(self.now / MICROSECOND).unwrap() + self.store_clock_offset
    }

    fn schedule(&mut self, at: u64, message: Message) {
        self.sequence += 1;
        self.messages
            .push(Reverse(Scheduled(at, self.sequence, message)));
    }

    fn send(&mut self, gateway: usize, command: StoreCommand) {
        let fate = self.fates[usize::try_from(self.commands).unwrap() % self.fates.len()];
        self.commands += 1;
        let sender = &self.gateways[gateway];
        let (generation, sent) = (sender.generation, sender.clock(self.now));
        let (there, back) = match fate {
            Fate::Delivered { there, back } => (there, Some(back)),
            Fate::ReplyLost { there } => (there, None),
            Fate::CommandLost => return,
        };
        self.schedule(
            self.now + there,
            Message::Command {
                gateway,
                generation,
                sent,
                command,
                back,
            },
        );
    }

    /// One attempt of a request. Returns whether it waits.
    fn attempt(&mut self, gateway: usize) -> bool {
        let now = self.gateways[gateway].clock(self.now);
        let prefetch = self.gateways[gateway].prefetch;
        let key = || Some(StoreKey([0; 16]));
        let (decision, command) = self.gateways[gateway]
            .table
            .take(ID, key, self.terms, now, prefetch);
        if let Some(command) = command {
            self.send(gateway, command);
        }
        match decision {
            TableDecision::Decided(LeaseDecision::Passed { delay, .. }) => {
                self.passed.push((self.now, self.now + nanoseconds(delay)));
                false
            }
            TableDecision::Decided(LeaseDecision::Rejected { .. }) => {
                self.rejected += 1;
                false
            }
            TableDecision::Wait(_) => true,
            TableDecision::Unavailable => unreachable!("every key has a name"),
        }
    }

    fn request(&mut self, gateway: usize) {
        if self.now >= self.gateways[gateway].paused_until && self.attempt(gateway) {
            self.gateways[gateway].waiting.push(self.now + TIMEOUT);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Request { gateway } => self.request(self.index(gateway)),
            Step::Burst { gateway, count } => {
                for _ in 0..count {
                    self.request(self.index(gateway));
                }
            }
            Step::Wait(time) => self.advance_to(self.now + time),
            Step::Steady {
                gateway,
                interval,
                count,
            } => {
                for _ in 0..count {
                    self.advance_with_sweeps(gateway, self.now + interval);
                    self.request(self.index(gateway));
                }
            }
            Step::Sweep { gateway } => {
                let gateway = self.index(gateway);
                if self.now >= self.gateways[gateway].paused_until {
                    let now = self.gateways[gateway].clock(self.now);
                    for command in self.gateways[gateway].table.sweep(now) {
                        self.send(gateway, command);
                    }
                }
            }
            Step::Crash { gateway } => {
                let gateway = self.index(gateway);
                let crashed = &mut self.gateways[gateway];
                crashed.table = LeaseTable::new();
                crashed.generation += 1;
                crashed.waiting.clear();
                crashed.prefetch = Prefetch::Permitted;
            }
            Step::Pause { gateway, time } => {
                let gateway = self.index(gateway);
                self.gateways[gateway].paused_until = self.now + time;
            }
            Step::Drain { gateway } => {
                let gateway = self.index(gateway);
                self.gateways[gateway].prefetch = Prefetch::Forbidden;
                let now = self.gateways[gateway].clock(self.now);
                for command in self.gateways[gateway].table.release_all(now) {
                    self.send(gateway, command);
                }
            }
            Step::SetStoreClockBack(time) => {
                self.store_clock_offset -= i64::try_from(time / MICROSECOND).unwrap();
            }
        }
    }

    /// Lets time pass, in which the gateway sweeps as often as a real one.
    fn advance_with_sweeps(&mut self, gateway: usize, end: u64) {
        const SWEEP_INTERVAL: u64 = 250 * MILLISECOND;
        loop {
            let next = (self.now / SWEEP_INTERVAL + 1) * SWEEP_INTERVAL;
            if next > end {
                return self.advance_to(end);
            }
            self.advance_to(next);
            self.step(Step::Sweep { gateway });
        }
    }

    fn advance_to(&mut self, end: u64) {
        while let Some(Reverse(Scheduled(at, ..))) = self.messages.peek()
            && *at <= end
        {
            let Reverse(Scheduled(at, _, message)) = self.messages.pop().unwrap();
            self.now = self.now.max(at);
            self.deliver(message);
        }
        self.now = end;
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Command {
                gateway,
                generation,
                sent,
                command,
                back,
            } => {
                let gateways = u32::try_from(self.gateways.len()).unwrap();
                let arguments = ScriptArguments::new(&command, gateways);
                let reply = self.store.execute(self.store_time(), &arguments);
                if reply.granted > 0
                    && self.windows.last() != Some(&reply.identity.incarnation.unsigned_abs())
                {
                    self.windows.push(reply.identity.incarnation.unsigned_abs());
                }
                if let Some(back) = back {
                    let message = Message::Reply {
                        gateway,
                        generation,
                        sent,
                        arguments: Box::new(arguments),
                        command,
                        reply,
                    };
                    self.schedule(self.now + back, message);
                }
            }
            Message::Reply {
                gateway,
                generation,
                sent,
                arguments,
                command,
                reply,
            } => {
                if self.gateways[gateway].generation != generation {
                    return;
                }
                let paused_until = self.gateways[gateway].paused_until;
                if self.now < paused_until {
                    let message = Message::Reply {
                        gateway,
                        generation,
                        sent,
                        arguments,
                        command,
                        reply,
                    };
                    return self.schedule(paused_until, message);
                }
                if !command.is_refill() {
                    return;
                }
                let received = self.gateways[gateway].clock(self.now);
                let grant = reply.to_grant(&arguments, sent, received);
                self.gateways[gateway].table.apply(&command, &grant);
                let waiting = std::mem::take(&mut self.gateways[gateway].waiting);
                for deadline in waiting {
                    if deadline >= self.now && self.attempt(gateway) {
                        self.gateways[gateway].waiting.push(deadline);
                    }
                }
            }
        }
    }

    fn passed_at(&self) -> Vec<u64> {
        self.passed.iter().map(|(at, _)| *at).collect()
    }
}

fn terms(
    algorithm: RateLimitAlgorithm,
    quota: u32,
    window_ns: u64,
    bucket_size: u32,
) -> LeaseTerms {
    LeaseTerms::new(
        algorithm,
        QuotaPolicy {
            quota,
            window_ns,
            bucket_size,
        },
    )
}

/// Returns the largest number of instants in any span.
fn max_in_any_span(sorted: &[u64], span: u64) -> usize {
    (0..sorted.len())
        .map(|first| {
            sorted[first..]
                .iter()
                .take_while(|at| **at < sorted[first] + span)
                .count()
        })
        .max()
        .unwrap_or(0)
}

/// Checks that instants conform to a token bucket. The store's clock has microseconds: one more passes at
/// most that much early.
fn conforms_to_bucket(sorted: &[u64], limit: u32, interval: u64) -> bool {
    const RESOLUTION: u64 = 2 * MICROSECOND;
    let drain_time = interval * u64::from(limit);
    let mut full_at = 0;
    sorted.iter().all(|at| {
        full_at = full_at.max(*at) + interval;
        full_at - at <= drain_time + RESOLUTION
    })
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let delay = || {
        prop_oneof![
            4 => 10 * MICROSECOND..MILLISECOND,
            2 => MILLISECOND..60 * MILLISECOND,
            1 => 60 * MILLISECOND..900 * MILLISECOND,
        ]
    };
    let fate = prop_oneof![
        8 => (delay(), delay()).prop_map(|(there, back)| Fate::Delivered { there, back }),
        1 => Just(Fate::CommandLost),
        1 => delay().prop_map(|there| Fate::ReplyLost { there }),
    ];
    proptest::collection::vec(fate, 1..20)
}

/// Longest step of the store's clock, backwards.
const CLOCK_STEP: u64 = 20 * SECOND;
const NO_CLOCK_STEP: u64 = 1;

fn steps(max_clock_step: u64) -> impl Strategy<Value = Vec<Step>> {
    let gateway = || 0..3_usize;
    let wait = prop_oneof![
        4 => 0..MILLISECOND,
        4 => 0..100 * MILLISECOND,
        2 => 0..3 * SECOND,
        1 => 0..20 * SECOND,
    ];
    let step = prop_oneof![
        12 => gateway().prop_map(|gateway| Step::Request { gateway }),
        4 => (gateway(), 1..30_u32).prop_map(|(gateway, count)| Step::Burst { gateway, count }),
        12 => wait.prop_map(Step::Wait),
        3 => gateway().prop_map(|gateway| Step::Sweep { gateway }),
        3 => (gateway(), 0..2 * SECOND, 1..40_u32)
            .prop_map(|(gateway, interval, count)| Step::Steady { gateway, interval, count }),
        1 => gateway().prop_map(|gateway| Step::Crash { gateway }),
        1 => (gateway(), 0..10 * SECOND).prop_map(|(gateway, time)| Step::Pause { gateway, time }),
        1 => gateway().prop_map(|gateway| Step::Drain { gateway }),
        1 => (0..max_clock_step).prop_map(Step::SetStoreClockBack),
    ];
    proptest::collection::vec(step, 1..250)
}

fn clocks() -> impl Strategy<Value = Vec<(u64, i64)>> {
    proptest::collection::vec((0..1000 * SECOND, -400..400_i64), 1..4)
}

fn policies() -> impl Strategy<Value = (u32, u64, u32)> {
    (1..80_u32, 700 * MILLISECOND..30 * SECOND, 1..80_u32)
}

fn run(terms: LeaseTerms, clocks: &[(u64, i64)], fates: Vec<Fate>, steps: Vec<Step>) -> Simulation {
    let mut simulation = Simulation::new(terms, clocks, fates);
    for step in steps {
        simulation.step(step);
    }
    simulation.advance_to(simulation.now + 2 * SECOND);
    simulation
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_fixed_window_lets_more_than_the_quota_through(
        (quota, window, _) in policies(), clocks in clocks(), fates in fates(), steps in steps(NO_CLOCK_STEP)
    ) {
        let simulation = run(terms(FixedWindow, quota, window, 1), &clocks, fates, steps);
        let window = window.div_ceil(MICROSECOND);
        let offset = simulation.store_clock_offset;
        prop_assert_eq!(offset, 0);
        let mut covered = 0;
        for end in &simulation.windows {
            // A microsecond is the resolution of the store's clock.
            let in_window = |at: &&u64| {
                let at = **at / MICROSECOND;
                at + window >= *end && at < *end
            };
            let count = simulation.passed_at().iter().filter(in_window).count();
            covered += count;
            prop_assert!(count <= quota as usize, "{} > {}", count, quota);
        }
        prop_assert!(covered >= simulation.passed.len(), "a request passed outside of every window");
    }

    #[test]
    fn no_span_of_a_sliding_window_lets_more_than_the_quota_through(
        (quota, window, _) in policies(), clocks in clocks(), fates in fates(), steps in steps(CLOCK_STEP)
    ) {
        let simulation = run(terms(SlidingWindow, quota, window, 1), &clocks, fates, steps);
        let most = max_in_any_span(&simulation.passed_at(), window);
        prop_assert!(most <= quota as usize, "{} > {}", most, quota);
    }

    #[test]
    fn a_token_bucket_never_lets_more_than_its_tokens_through(
        (quota, window, limit) in policies(), clocks in clocks(), fates in fates(), steps in steps(CLOCK_STEP)
    ) {
        let terms = terms(TokenBucket, quota, window, limit);
        let simulation = run(terms, &clocks, fates, steps);
        prop_assert!(conforms_to_bucket(&simulation.passed_at(), limit, terms.period()));
    }

    #[test]
    fn a_leaky_bucket_releases_requests_at_its_rate(
        (quota, window, limit) in policies(), clocks in clocks(), steps in steps(CLOCK_STEP)
    ) {
        // The decision of the store is as exact as its responses are quick.
        let fates = vec![
            Fate::Delivered { there: 200 * MICROSECOND, back: 300 * MICROSECOND },
            Fate::Delivered { there: 100 * MICROSECOND, back: 900 * MICROSECOND },
            Fate::ReplyLost { there: MILLISECOND },
        ];
        let steps = steps.into_iter().filter(|step| !matches!(step, Step::Pause { .. })).collect();
        let terms = terms(LeakyBucket, quota, window, limit);
        let simulation = run(terms, &clocks, fates, steps);
        let mut departures: Vec<_> = simulation.passed.iter().map(|(_, out)| *out).collect();
        departures.sort_unstable();
        let interval = terms.period();
        for (first, start) in departures.iter().enumerate() {
            for (index, end) in departures.iter().enumerate().skip(first) {
                // The round trip, and what clocks of different rates make of the longest delay.
                let jitter = 51 * MILLISECOND + interval * u64::from(limit) / 1000;
                let intervals = (end - start + jitter) / interval + 1;
                prop_assert!((index - first) as u64 <= intervals);
            }
        }
        let longest = simulation.passed.iter().map(|(at, out)| out - at).max().unwrap_or(0);
        prop_assert!(longest <= interval * u64::from(limit) + 10 * MILLISECOND);
    }
}

/// Time of a response from a store nearby.
const RESPONSE_TIME: u64 = 150 * MICROSECOND;

/// Network without faults, to a store nearby.
fn quick_fates() -> Vec<Fate> {
    vec![Fate::Delivered {
        there: 150 * MICROSECOND,
        back: RESPONSE_TIME,
    }]
}

/// Requests of a client: intervals, and how many follow each other with one.
fn requests() -> impl Strategy<Value = Vec<(u64, u32)>> {
    let interval = prop_oneof![
        2 => 0..10 * MILLISECOND,
        3 => 0..SECOND,
        2 => 0..4 * SECOND,
        1 => 0..20 * SECOND,
    ];
    proptest::collection::vec((interval, 1..60_u32), 0..12)
}

/// Requests that passed, and the end of the last fixed window in the microseconds of the store.
struct History {
    passed: Vec<u64>,
    window_end: Option<u64>,
}

/// Lets a client of one gateway send requests, and then at one instant more than its limit. Returns that instant, what
/// had happened before, and the number of requests that passed then.
fn burst_after(terms: LeaseTerms, requests: Vec<(u64, u32)>) -> (u64, History, usize) {
    let mut simulation = Simulation::new(terms, &[(0, 0)], quick_fates());
    for (interval, count) in requests {
        simulation.step(Step::Steady {
            gateway: 0,
            interval,
            count,
        });
    }
    simulation.step(Step::Wait(MILLISECOND));
    let before = History {
        passed: simulation.passed_at(),
        window_end: simulation.windows.last().copied(),
    };
    let at = simulation.now;
    simulation.step(Step::Burst {
        gateway: 0,
        count: terms.limit() + 10,
    });
    simulation.step(Step::Wait(TIMEOUT));
    let passed = simulation.passed.len() - before.passed.len();
    (at, before, passed)
}

/// Largest part of the window by which units are available late.
fn lateness(window: u64) -> u64 {
    window * 3 / 64 + 2 * MILLISECOND
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_client_of_one_gateway_gets_its_whole_sliding_window(
        (quota, window, _) in policies(), requests in requests()
    ) {
        let terms = terms(SlidingWindow, quota, window, 1);
        let (at, before, passed) = burst_after(terms, requests);
        let still_counted = before.passed.iter().filter(|spent| **spent + window + lateness(window) >= at);
        let least = quota as usize - still_counted.count().min(quota as usize);
        prop_assert!(passed >= least, "{} of {}", passed, least);
    }

    #[test]
    fn a_client_of_one_gateway_gets_its_whole_fixed_window(
        (quota, window, _) in policies(), requests in requests()
    ) {
        let terms = terms(FixedWindow, quota, window, 1);
        let (at, before, passed) = burst_after(terms, requests);
        let start = before.window_end.map_or(0, |end| end - window.div_ceil(MICROSECOND));
        // The responses of its commands arrive after the store opened it.
        let opened = start * MICROSECOND + RESPONSE_TIME;
        let in_window = before.passed.iter().filter(|spent| **spent >= opened).count();
        let end = before.window_end.unwrap_or(0) * MICROSECOND;
        prop_assume!(at + MILLISECOND < end || at >= end);
        let least = if at < end { quota as usize - in_window } else { quota as usize };
        prop_assert_eq!(passed, least);
    }

    #[test]
    fn a_client_of_one_gateway_gets_all_tokens_of_its_bucket(
        (quota, window, limit) in policies(), requests in requests()
    ) {
        let terms = terms(TokenBucket, quota, window, limit);
        let (at, before, passed) = burst_after(terms, requests);
        let policy = QuotaPolicy { quota, window_ns: window, bucket_size: limit };
        let mut alone = QuotaState::default();
        let mut take = |now| {
            let decision = token_bucket::take(&mut alone, policy, Instant(now));
            matches!(decision, AlgorithmDecision::Passed { .. })
        };
        // Units that are refilled late, and the one that is refilled in part.
        let recovery = window.min(terms.period() * u64::from(limit));
        let late = lateness(recovery).div_ceil(terms.period()) + 1;
        for spent in before.passed {
            take(spent);
        }
        let all = (0..limit).filter(|_| take(at)).count();
        prop_assert!(passed as u64 + late >= all as u64, "{} of {}", passed, all);
    }
}

/// Lets requests pass at a steady rate, in turn through each gateway, and returns how many did in `time`.
fn steady(terms: LeaseTerms, gateways: usize, requests: u64, time: u64) -> Simulation {
    let clocks: Vec<_> = (0..gateways as u64)
        .map(|number| (number * SECOND, 0))
        .collect();
    let mut simulation = Simulation::new(terms, &clocks, quick_fates());
    let mut swept = 0;
    for number in 0..requests {
        let at = START + time / requests * number;
        simulation.advance_to(at);
        if at >= swept + 250 * MILLISECOND {
            swept = at;
            for gateway in 0..gateways {
                simulation.step(Step::Sweep { gateway });
            }
        }
        simulation.step(Step::Request {
            gateway: usize::try_from(number).unwrap(),
        });
    }
    simulation.advance_to(START + time);
    simulation
}

#[test]
fn a_client_gets_nearly_its_whole_quota() {
    for gateways in 1..=3 {
        for quota in [20, 100, 1000] {
            for algorithm in [FixedWindow, SlidingWindow] {
                let terms = terms(algorithm, quota, 60 * SECOND, quota);
                let simulation = steady(terms, gateways, 2 * u64::from(quota), 55 * SECOND);
                let passed = simulation.passed.len();
                let least = if gateways == 1 {
                    quota as usize
                } else {
                    quota as usize * 95 / 100
                };
                assert!(
                    passed >= least && passed <= quota as usize,
                    "{algorithm:?} {quota} by {gateways}: {passed}"
                );
            }
            // Four minutes of a client at the limit of a small bucket.
            let bucket_size = quota / 20;
            let small = terms(TokenBucket, quota, 60 * SECOND, bucket_size);
            let simulation = steady(small, gateways, 10 * u64::from(quota), 240 * SECOND);
            let mut alone = QuotaState::default();
            let policy = QuotaPolicy {
                quota,
                window_ns: 60 * SECOND,
                bucket_size,
            };
            let requests = 10 * u64::from(quota);
            let most = (0..requests)
                .map(|number| Instant(START + 240 * SECOND / requests * number))
                .filter(|now| {
                    let decision = token_bucket::take(&mut alone, policy, *now);
                    matches!(decision, AlgorithmDecision::Passed { .. })
                })
                .count();
            let passed = simulation.passed.len();
            assert!(
                passed >= most * 90 / 100,
                "bucket of {bucket_size} by {gateways}: {passed} of {most}"
            );
            // And of others.
            for (algorithm, most) in [
                (FixedWindow, 4 * quota),
                (SlidingWindow, 4 * quota),
                (TokenBucket, 5 * quota),
            ] {
                let terms = terms(algorithm, quota, 60 * SECOND, quota);
                let simulation = steady(terms, gateways, 10 * u64::from(quota), 240 * SECOND);
                let passed = simulation.passed.len();
                assert!(
                    passed >= most as usize * 94 / 100,
                    "{algorithm:?} {quota} by {gateways}: {passed} of {most}"
                );
            }
        }
    }
}

#[test]
fn far_from_the_limit_one_command_serves_many_requests() {
    for algorithm in [FixedWindow, SlidingWindow, TokenBucket] {
        for gateways in 1..=3 {
            let terms = terms(algorithm, 60_000, 60 * SECOND, 60_000);
            let requests = 6000;
            let simulation = steady(terms, gateways, requests, 30 * SECOND);
            assert_eq!(simulation.passed.len() as u64, requests);
            assert!(
                simulation.commands <= requests / 20,
                "{algorithm:?} by {gateways}: {} commands",
                simulation.commands
            );
        }
    }
}

/// Counts the commands for the requests of a client that come at one interval to one of several gateways, after the first
/// window of them.
fn requests_and_commands(
    terms: LeaseTerms,
    gateways: u64,
    (window, per_window): (u64, u32),
) -> (u64, u64) {
    const WINDOWS: u32 = 10;
    let clocks: Vec<_> = (0..gateways).map(|number| (number * SECOND, 0)).collect();
    let mut simulation = Simulation::new(terms, &clocks, quick_fates());
    let requests = |count| Step::Steady {
        gateway: 0,
        interval: window / u64::from(per_window),
        count,
    };
    simulation.step(requests(per_window));
    let before = simulation.commands;
    simulation.step(requests(WINDOWS * per_window));
    assert_eq!(simulation.rejected, 0);
    (
        u64::from(WINDOWS * per_window),
        simulation.commands - before,
    )
}

#[test]
#[expect(clippy::print_stdout, reason = "shown with --nocapture")]
fn in_a_steady_state_far_from_the_limit_one_command_serves_twenty_requests() {
    let quotas = [
        (100, 60 * SECOND, 25..=50_u32),
        (100, 6 * SECOND, 25..=50),
        (1000, 60 * SECOND, 25..=500),
        (1000, SECOND, 25..=500),
        (1000, 600 * SECOND, 61..=500),
    ];
    for (quota, window, rates) in quotas {
        for algorithm in [FixedWindow, SlidingWindow, TokenBucket] {
            for gateways in [1, 3] {
                let rates = rates.clone();
                let step = (rates.end() - rates.start()).div_ceil(5);
                for per_window in rates.step_by(step as usize) {
                    let terms = terms(algorithm, quota, window, quota);
                    let (requests, commands) =
                        requests_and_commands(terms, gateways, (window, per_window));
                    let case = format!("{algorithm:?}, {quota} per {window} ns, one of {gateways}");
                    println!("{case}, {per_window}: {requests} by {commands} commands");
                    assert!(
                        commands * 20 <= requests,
                        "{case}, {per_window}: {requests} by {commands} commands"
                    );
                }
            }
        }
    }
}

#[test]
fn requests_with_pauses_cost_few_commands() {
    const PAUSE: u64 = 7 * SECOND;
    const GROUPS: u32 = 10;
    for algorithm in [FixedWindow, SlidingWindow, TokenBucket] {
        for requests in [1, 2, 3, 7, 15, 31, 60] {
            let terms = terms(algorithm, 10_000, 60 * SECOND, 10_000);
            let mut simulation = Simulation::new(terms, &[(0, 0)], quick_fates());
            for _ in 0..GROUPS {
                for (interval, count) in [(PAUSE, 1), (MILLISECOND, requests - 1)] {
                    simulation.step(Step::Steady {
                        gateway: 0,
                        interval,
                        count,
                    });
                }
            }
            let most = match requests {
                1 => 1,
                _ => 3 + requests.ilog2(),
            };
            let commands = simulation.commands;
            assert!(
                commands <= u64::from(GROUPS * most),
                "{algorithm:?}, groups of {requests}: {commands} commands"
            );
        }
    }
}

#[test]
fn a_flood_of_rejected_requests_costs_no_commands() {
    for algorithm in [FixedWindow, SlidingWindow] {
        let terms = terms(algorithm, 10, 60 * SECOND, 10);
        let mut simulation = steady(terms, 1, 20, SECOND);
        let before = simulation.commands;
        simulation.step(Step::Burst {
            gateway: 0,
            count: 10_000,
        });
        assert_eq!(simulation.commands, before, "{algorithm:?}");
        assert_eq!(simulation.passed.len(), 10);
    }
}

#[test]
fn a_shutdown_returns_what_is_unused() {
    for algorithm in [FixedWindow, SlidingWindow, TokenBucket] {
        let terms = terms(algorithm, 100, 3600 * SECOND, 100);
        let mut simulation = steady(terms, 1, 30, SECOND);
        assert_eq!(simulation.passed.len(), 30);
        simulation.step(Step::Drain { gateway: 0 });
        simulation.step(Step::Wait(MILLISECOND));
        simulation.step(Step::Crash { gateway: 0 });
        simulation.step(Step::Burst {
            gateway: 0,
            count: 200,
        });
        simulation.step(Step::Wait(TIMEOUT));
        assert_eq!(simulation.passed.len(), 100, "{algorithm:?}");
        assert_eq!(simulation.rejected, 130);
    }
}

#[test]
fn what_an_idle_lease_has_left_goes_back() {
    for algorithm in [SlidingWindow, TokenBucket] {
        let terms = terms(algorithm, 100, 3600 * SECOND, 100);
        let mut simulation = Simulation::new(terms, &[(0, 0)], quick_fates());
        for _ in 0..30 {
            simulation.step(Step::Burst {
                gateway: 0,
                count: 1,
            });
            simulation.step(Step::Wait(MILLISECOND));
        }
        assert_eq!(simulation.passed.len(), 30);
        // The last lease has units left, which are idle after ten seconds.
        simulation.step(Step::Wait(10 * SECOND));
        simulation.step(Step::Sweep { gateway: 0 });
        simulation.step(Step::Wait(MILLISECOND));
        simulation.step(Step::Crash { gateway: 0 });
        simulation.step(Step::Burst {
            gateway: 0,
            count: 200,
        });
        simulation.step(Step::Wait(TIMEOUT));
        assert_eq!(simulation.passed.len(), 100, "{algorithm:?}");
    }
}

#[test]
fn a_late_return_credits_nothing_that_the_bucket_was_refilled_with() {
    let terms = terms(TokenBucket, 46, 2_471_613_995, 23);
    let fates = vec![Fate::Delivered {
        there: 10 * MICROSECOND,
        back: 10 * MICROSECOND,
    }];
    let mut simulation = Simulation::new(terms, &[(0, 0), (0, 0)], fates);
    for step in [
        Step::Burst {
            gateway: 1,
            count: 2,
        },
        Step::Wait(156_427_801),
        Step::Burst {
            gateway: 0,
            count: 16,
        },
        Step::Wait(43_383_199),
        Step::Burst {
            gateway: 1,
            count: 8,
        },
        Step::Request { gateway: 0 },
        Step::Wait(SECOND),
    ] {
        simulation.step(step);
    }
    assert!(conforms_to_bucket(
        &simulation.passed_at(),
        23,
        terms.period()
    ));
}

#[test]
fn concurrent_requests_get_exactly_the_quota() {
    for algorithm in [FixedWindow, SlidingWindow, TokenBucket] {
        let terms = terms(algorithm, 100, 3600 * SECOND, 100);
        let fates = vec![
            Fate::Delivered {
                there: 150 * MICROSECOND,
                back: 350 * MICROSECOND,
            },
            Fate::Delivered {
                there: 90 * MICROSECOND,
                back: 150 * MICROSECOND,
            },
        ];
        let mut simulation = Simulation::new(terms, &[(0, 0), (5, 0), (9, 0)], fates);
        for number in 0..1000 {
            simulation.step(Step::Request { gateway: number });
            simulation.step(Step::Wait(20 * MICROSECOND));
        }
        simulation.step(Step::Wait(SECOND));
        assert_eq!(simulation.passed.len(), 100, "{algorithm:?}");
    }
}
