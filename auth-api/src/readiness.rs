//! Readiness of this replica: whether its stores can do what requests need of them. An audit log that is
//! required counts as one.
//!
//! Each store is checked in the background, however often readiness is asked for. A check that
//! succeeds is a lease: the store counts as ready for [`LEASE`]. So a fault that is shorter, such as
//! the failover of a database, does not take every replica out at once, and a store that works again
//! is ready at its next check. A check that hangs or a task that has ended lets the lease expire.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::IntGauge;
use supervision::Supervisor;

use crate::sessions::Sessions;
use crate::store::check::CheckError;
use crate::telemetry::audit::AuditFileState;
use crate::telemetry::metrics::Metrics;
use crate::users::Users;

/// Pause between two checks of a store.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest duration of a check, a little more than that of an operation of any store.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for which a store is ready after a check that succeeded. It is longer than the longest check
/// and the pause before it.
const LEASE: Duration = Duration::from_secs(5);

/// Readiness of the stores. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Readiness {
    pub(crate) users: StoreHealth,
    pub(crate) sessions: StoreHealth,
    /// `None` if requests do not need the audit log.
    pub(crate) audit_log: Option<StoreHealth>,
}

/// Name of the audit log in metrics and log lines.
const AUDIT_LOG: &str = "audit_log";

/// Results of the checks of one store. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct StoreHealth {
    history: Arc<Mutex<CheckHistory>>,
    /// 1 if the last check succeeded.
    up: IntGauge,
}

#[derive(Debug, Default)]
struct CheckHistory {
    /// Start of the last check that succeeded.
    last_success: Option<Instant>,
    /// Duration of the last check.
    latency: Option<Duration>,
    /// Reason the last check failed, `None` if it succeeded.
    problem: Option<CheckError>,
}

/// State of a store at one time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct StoreStatus {
    pub(crate) is_ready: bool,
    /// Duration of the last check.
    pub(crate) latency: Option<Duration>,
    /// Reason the last check failed. The store may still be ready.
    pub(crate) problem: Option<CheckError>,
}

impl Readiness {
    /// Starts to check the stores. They are not ready before their first check.
    pub(crate) fn start(
        users: &Users,
        sessions: &Sessions,
        audit_file: Option<AuditFileState>,
        metrics: &Metrics,
    ) -> Self {
        let audit_log =
            audit_file.map(|file| (StoreHealth::new(metrics.store_up(AUDIT_LOG)), file));
        let readiness = Self {
            users: StoreHealth::new(metrics.store_up(users.store_label())),
            sessions: StoreHealth::new(metrics.store_up(sessions.store_label())),
            audit_log: audit_log.as_ref().map(|(health, _)| health.clone()),
        };
        let supervisor = &metrics.supervisor;
        let (health, users) = (readiness.users.clone(), users.clone());
        keep_checking(supervisor, "users_check", move || {
            let (health, users) = (health.clone(), users.clone());
            async move { health.check("users", users.check()).await }
        });
        let (health, sessions) = (readiness.sessions.clone(), sessions.clone());
        keep_checking(supervisor, "sessions_check", move || {
            let (health, sessions) = (health.clone(), sessions.clone());
            async move { health.check("sessions", sessions.check()).await }
        });
        if let Some((health, file)) = audit_log {
            keep_checking(supervisor, "audit_log_check", move || {
                let (health, outcome) = (health.clone(), check_audit_log(&file));
                async move { health.check(AUDIT_LOG, std::future::ready(outcome)).await }
            });
        }
        readiness
    }
}

/// Returns what the last append has shown. One that failed is repeated every second.
fn check_audit_log(file: &AuditFileState) -> Result<(), CheckError> {
    if file.is_failing() {
        return Err(CheckError::NotPersistent);
    }
    Ok(())
}

/// Runs `check` every [`CHECK_INTERVAL`] in a background task named `task`, which `supervisor` starts again
/// if a check panics: else the store would count as not ready for ever.
fn keep_checking<F>(
    supervisor: &Supervisor,
    task: &'static str,
    check: impl Fn() -> F + Send + Sync + 'static,
) where
    F: Future<Output = ()> + Send,
{
    let (supervisor, check) = (supervisor.clone(), Arc::new(check));
    tokio::spawn(async move {
        let run = || {
            let check = Arc::clone(&check);
            async move {
                loop {
                    check().await;
                    tokio::time::sleep(CHECK_INTERVAL).await;
                }
            }
        };
        supervisor.keep_running(task, run).await;
    });
}

impl StoreHealth {
    fn new(up: IntGauge) -> Self {
        Self {
            history: Arc::default(),
            up,
        }
    }

    pub(crate) fn status(&self) -> StoreStatus {
        self.history.lock().status_at(Instant::now())
    }

    async fn check(&self, store: &str, check: impl Future<Output = Result<(), CheckError>>) {
        let start = Instant::now();
        let outcome = tokio::time::timeout(CHECK_TIMEOUT, check)
            .await
            .unwrap_or(Err(CheckError::Unavailable));
        self.up.set(i64::from(outcome.is_ok()));
        let previous = self.history.lock().record(start, start.elapsed(), outcome);
        match (previous, outcome.err()) {
            (Some(_), None) => tracing::info!(store, "store is usable again"),
            (previous, Some(problem)) if previous != Some(problem) => {
                tracing::error!(store, %problem, "store is not usable");
            }
            _ => {}
        }
    }
}

impl CheckHistory {
    /// Records the outcome of a check and returns the problem that the one before found.
    fn record(
        &mut self,
        start: Instant,
        duration: Duration,
        outcome: Result<(), CheckError>,
    ) -> Option<CheckError> {
        if outcome.is_ok() {
            self.last_success = Some(start);
        }
        self.latency = Some(duration);
        std::mem::replace(&mut self.problem, outcome.err())
    }

    fn status_at(&self, now: Instant) -> StoreStatus {
        StoreStatus {
            is_ready: self.last_success.is_some_and(|start| now < start + LEASE),
            latency: self.latency,
            problem: self.problem,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_store_is_ready_from_its_first_success_until_none_has_followed_for_a_lease() {
        let (mut history, start) = (CheckHistory::default(), Instant::now());
        assert!(!history.status_at(start).is_ready);
        history.record(start, Duration::ZERO, Err(CheckError::SchemaMissing));
        assert!(!history.status_at(start).is_ready);

        history.record(start, Duration::from_millis(2), Ok(()));
        let failed_at = start + CHECK_INTERVAL;
        history.record(failed_at, CHECK_TIMEOUT, Err(CheckError::ReadOnly));
        let status = history.status_at(failed_at + CHECK_TIMEOUT);
        assert!(status.is_ready, "a brief fault");
        assert_eq!(status.problem, Some(CheckError::ReadOnly));
        assert_eq!(status.latency, Some(CHECK_TIMEOUT));
        assert!(!history.status_at(start + LEASE).is_ready);

        let recovered_at = start + 2 * LEASE;
        history.record(recovered_at, Duration::ZERO, Ok(()));
        let status = history.status_at(recovered_at);
        assert!(status.is_ready && status.problem.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn checks_go_on_after_one_that_panics() {
        let (supervisor, health) = (Supervisor::new(), StoreHealth::new(up_gauge()));
        let (checks, checked) = (Arc::new(AtomicU32::new(0)), health.clone());
        keep_checking(&supervisor, "tested", move || {
            let (checks, health) = (Arc::clone(&checks), checked.clone());
            async move {
                let check = async {
                    assert!(checks.fetch_add(1, Ordering::Relaxed) > 0, "the first one");
                    Ok(())
                };
                health.check("tested", check).await;
            }
        });
        assert!(!health.status().is_ready);
        while !health.status().is_ready {
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
        assert_eq!(supervisor.restarts("tested"), 1);
    }

    #[tokio::test]
    async fn the_gauge_tells_the_outcome_of_the_last_check() {
        let up = up_gauge();
        let health = StoreHealth::new(up.clone());
        for (outcome, value) in [(Ok(()), 1), (Err(CheckError::ReadOnly), 0), (Ok(()), 1)] {
            health.check("tested", std::future::ready(outcome)).await;
            assert_eq!(up.get(), value);
        }
    }

    fn up_gauge() -> IntGauge {
        IntGauge::new("up", "Result of the last check.").unwrap()
    }

    #[test]
    fn the_slowest_check_that_succeeds_renews_the_lease_in_time() {
        assert!(CHECK_INTERVAL + CHECK_TIMEOUT < LEASE);
    }
}
