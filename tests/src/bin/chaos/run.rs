//! State of a run that clients, nemesis and checks share.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::account::Account;
use crate::checker::deadlines::GatewayFault;
use crate::checker::quotas::{Quota, QuotaKind};
use crate::checker::{accounts, deadlines, quotas, sessions};
use crate::deployment::{
    BUCKET_QUOTA, BUCKET_SIZE, Deployment, PATH_TIMEOUT, QUOTA_DURATION, WINDOW_QUOTA,
};
use crate::history::{GatewayId, Operation, Outcome, Span, Time, Violation};
use crate::nemesis::FaultRecord;
use crate::node::NodeId;
use crate::redis_status;

/// Paths with quotas and the keys for which they are counted.
const QUOTAS: [(&str, &str); 4] = [
    ("/window/health", "a"),
    ("/window/health", "b"),
    ("/bucket/health", "a"),
    ("/bucket/health", "b"),
];
/// Time beyond the timeout of a path in which a gateway has to respond: two seconds to verify a token, and what a busy
/// machine takes for the rest.
const DEADLINE_MARGIN: Duration = Duration::from_secs(5);
/// Time after which the faults and failovers that concern an account are recorded.
const SETTLED: Duration = Duration::from_mins(1);
/// Interval at which the state of Redis is observed.
const OBSERVATION_INTERVAL: Duration = Duration::from_millis(200);
/// Time before the last observation of a primary with a replica in which writes may not have reached the replica: the
/// replica counts as online for `min-replicas-max-lag`, three seconds, which Redis measures in seconds and looks at once a
/// second.
const REPLICATION_LAG: Duration = Duration::from_secs(5);

/// A run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) deployment: Deployment,
    seed: u64,
    /// Folder for the histories of violations and the logs.
    folder: PathBuf,
    start: Instant,
    is_over: AtomicBool,
    operation_count: AtomicU64,
    accounts: Mutex<Vec<Arc<Account>>>,
    quota_operations: [Mutex<Vec<Operation>>; QUOTAS.len()],
    /// Number of faults of each gateway that may have broken connections to it.
    fault_counts: [AtomicUsize; 2],
    faults: Mutex<Vec<FaultRecord>>,
    gateway_faults: Mutex<Vec<GatewayFault>>,
    /// Spans of failovers of Redis.
    losses: Mutex<Vec<Span>>,
    /// Violations that no operation shows: crashes, and deployments that do not recover.
    other_violations: Mutex<Vec<Violation>>,
    /// Longest time by which a timer of this program was late, in milliseconds: the machine was busy.
    latest_timer_ms: AtomicU64,
}

impl Run {
    pub(crate) fn new(deployment: Deployment, seed: u64, folder: PathBuf) -> Self {
        Self {
            deployment,
            seed,
            folder,
            start: Instant::now(),
            is_over: AtomicBool::new(false),
            operation_count: AtomicU64::new(0),
            accounts: Mutex::default(),
            quota_operations: Default::default(),
            fault_counts: Default::default(),
            faults: Mutex::default(),
            gateway_faults: Mutex::default(),
            losses: Mutex::default(),
            other_violations: Mutex::default(),
            latest_timer_ms: AtomicU64::new(0),
        }
    }

    pub(crate) fn now(&self) -> Time {
        self.start.elapsed()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn count_operation(&self) {
        self.operation_count.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn operation_count(&self) -> u64 {
        self.operation_count.load(Ordering::Relaxed)
    }

    pub(crate) fn add_account(&self, lifetime: Duration) -> Arc<Account> {
        let mut accounts = lock(&self.accounts);
        let login = format!("chaos {} {}", self.seed, accounts.len());
        let account = Arc::new(Account::new(login, lifetime));
        accounts.push(Arc::clone(&account));
        account
    }

    pub(crate) fn accounts(&self) -> Vec<Arc<Account>> {
        lock(&self.accounts).clone()
    }

    /// Number of paths and keys with quotas.
    pub(crate) const QUOTA_COUNT: usize = QUOTAS.len();

    /// Returns the path and the key of a quota.
    #[expect(clippy::unused_self, reason = "quotas belong to a run")]
    pub(crate) fn quota(&self, quota: usize) -> (&'static str, &'static str) {
        QUOTAS[quota]
    }

    pub(crate) fn record_quota(&self, quota: usize, operation: Operation) {
        lock(&self.quota_operations[quota]).push(operation);
    }

    pub(crate) fn fault_count(&self, GatewayId(index): GatewayId) -> usize {
        self.fault_counts[index].load(Ordering::Relaxed)
    }

    /// Records that a gateway may have been slow or unreachable for its clients. They use new connections from now on.
    pub(crate) fn record_gateway_fault(&self, gateway: GatewayId, span: Span) {
        lock(&self.gateway_faults).push(GatewayFault { gateway, span });
        self.fault_counts[gateway.0].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn record_fault(&self, fault: FaultRecord) {
        lock(&self.faults).push(fault);
    }

    pub(crate) fn faults(&self) -> Vec<FaultRecord> {
        lock(&self.faults).clone()
    }

    pub(crate) fn record_violation(&self, text: String) {
        let at = self.now();
        lock(&self.other_violations).push(Violation { at, text });
    }

    /// Observes Redis until the run ends, and records failovers.
    pub(crate) async fn observe_redis(&self) {
        let mut last: Option<(NodeId, Time)> = None;
        let mut has_changed = false;
        loop {
            tokio::time::sleep(OBSERVATION_INTERVAL).await;
            let now = self.now();
            let Some(primary) = redis_status::settled_primary().await else {
                if let Some((before, _)) = last {
                    let named = redis_status::any_named_primary().await;
                    has_changed |= named.is_some_and(|named| named != before);
                }
                continue;
            };
            if let Some((before, at)) = last
                && (has_changed || before != primary)
            {
                lock(&self.losses).push(Span {
                    from: at.saturating_sub(REPLICATION_LAG),
                    to: self.now(),
                });
                has_changed = false;
            }
            last = Some((primary, now));
        }
    }

    /// Measures how late timers are, until the run ends.
    pub(crate) async fn observe_timers(&self) {
        const INTERVAL: Duration = Duration::from_millis(100);
        loop {
            let start = Instant::now();
            tokio::time::sleep(INTERVAL).await;
            let late = start.elapsed().saturating_sub(INTERVAL);
            let late = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
            self.latest_timer_ms.fetch_max(late, Ordering::Relaxed);
        }
    }

    pub(crate) fn latest_timer(&self) -> Duration {
        Duration::from_millis(self.latest_timer_ms.load(Ordering::Relaxed))
    }

    /// Returns the violations of accounts that are not used any more, and whose faults and failovers are known.
    pub(crate) fn violations_so_far(&self) -> usize {
        let now = self.now();
        let losses = lock(&self.losses).clone();
        let is_settled = |account: &&Arc<Account>| matches!(account.retired.get(), Some(time) if *time + SETTLED < now);
        let violations = |account: &Arc<Account>| {
            let operations = account.operations();
            sessions::check(&operations, &losses).violations.len()
                + usize::from(accounts::check(&operations).is_some())
        };
        let accounts = self.accounts();
        let of_accounts: usize = accounts.iter().filter(is_settled).map(violations).sum();
        of_accounts + lock(&self.other_violations).len()
    }

    /// Checks all histories, and writes those with violations.
    pub(crate) fn check(&self) -> Result<Verdict> {
        let losses = lock(&self.losses).clone();
        let gateway_faults = lock(&self.gateway_faults).clone();
        let deadline = PATH_TIMEOUT + DEADLINE_MARGIN + self.latest_timer();
        let mut verdict = Verdict {
            violations: lock(&self.other_violations).clone(),
            failovers: losses.len(),
            ..Verdict::default()
        };
        let check_each = |operations: &[Operation]| {
            let mut violations = deadlines::check(operations, deadline, &gateway_faults);
            violations.extend(operations.iter().filter_map(|operation| {
                let Outcome::Unexpected(text) = &operation.outcome else {
                    return None;
                };
                Some(Violation {
                    at: operation.began,
                    text: format!("unexpected response {text}: {operation}"),
                })
            }));
            violations
        };
        for (number, account) in self.accounts().iter().enumerate() {
            let operations = account.operations().clone();
            let mut violations = check_each(&operations);
            violations.extend(accounts::check(&operations));
            let report = sessions::check(&operations, &losses);
            violations.extend(report.violations);
            verdict.lost_in_failovers += report.lost_in_failovers;
            self.write_history(&format!("account-{number}"), &operations, &violations)?;
            verdict.operations.extend(operations);
            verdict.violations.extend(violations);
        }
        for (number, operations) in self.quota_operations.iter().enumerate() {
            let operations = lock(operations).clone();
            let mut violations = check_each(&operations);
            let quota = if QUOTAS[number].0.starts_with("/window") {
                Quota {
                    burst: WINDOW_QUOTA as usize,
                    duration: QUOTA_DURATION,
                    kind: QuotaKind::SlidingWindow,
                }
            } else {
                Quota {
                    burst: BUCKET_SIZE as usize,
                    duration: QUOTA_DURATION,
                    kind: QuotaKind::TokenBucket {
                        per_duration: BUCKET_QUOTA,
                    },
                }
            };
            violations.extend(quotas::check(&operations, quota, &losses));
            self.write_history(&format!("quota-{number}"), &operations, &violations)?;
            verdict.operations.extend(operations);
            verdict.violations.extend(violations);
        }
        verdict.violations.sort_by_key(|violation| violation.at);
        Ok(verdict)
    }

    fn write_history(
        &self,
        name: &str,
        operations: &[Operation],
        violations: &[Violation],
    ) -> Result<()> {
        if violations.is_empty() {
            return Ok(());
        }
        let mut text = String::new();
        for violation in violations {
            writeln!(text, "{}", violation.text)?;
        }
        let mut operations = operations.to_vec();
        operations.sort_by_key(|operation| operation.began);
        writeln!(text, "\noperations: begin, end, in seconds")?;
        for operation in operations {
            writeln!(text, "{operation}")?;
        }
        writeln!(text, "\nfaults")?;
        for fault in self.faults() {
            writeln!(text, "{fault}")?;
        }
        writeln!(text, "\nfailovers of Redis: {:?}", lock(&self.losses))?;
        Ok(fs::write(self.folder.join(format!("{name}.txt")), text)?)
    }

    pub(crate) fn folder(&self) -> &PathBuf {
        &self.folder
    }
}

/// Result of a run.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) operations: Vec<Operation>,
    pub(crate) violations: Vec<Violation>,
    /// Failovers of Redis, and what they lost that they may lose.
    pub(crate) failovers: usize,
    pub(crate) lost_in_failovers: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of the lock panics")
}
