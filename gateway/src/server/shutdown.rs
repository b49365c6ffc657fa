//! Graceful shutdown: requests in flight are drained, then the process ends.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use pingora::server::{ExecutionPhase, RunArgs, Server};
use tokio::sync::broadcast::error::RecvError;

use crate::proxy::state::GatewayState;
use crate::server::quota_leases::return_leases;
use crate::server::shutdown_signals::ShutdownSignals;

/// Longest time that requests in flight may take after the shutdown began.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Time without requests after which idle connections are closed: their clients have received a GOAWAY
/// frame or `Connection: close` by then.
const IDLE_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Runs Pingora's server until a signal ends it and the last request is complete. Pingora itself would
/// always wait for the whole of [`DRAIN_TIMEOUT`], so it runs on a thread of its own, which is not
/// waited for.
///
/// # Errors
/// Returns an error if the server panics, or if the gateway that this one was to replace goes on serving: the exit
/// status tells the process's supervisor to start it again.
pub(super) fn run(
    server: Server,
    signals: ShutdownSignals,
    gateway: &Arc<GatewayState>,
) -> Result<()> {
    let mut phases = server.watch_execution_phase();
    let not_replaced = Arc::clone(&signals.not_replaced);
    let shutdown_signal = Box::new(signals);
    let thread = thread::spawn(move || server.run(RunArgs { shutdown_signal }));
    loop {
        match phases.blocking_recv() {
            Ok(ExecutionPhase::GracefulTerminate) => begin(gateway),
            Ok(ExecutionPhase::ShutdownGracePeriod) => break,
            Ok(ExecutionPhase::ShutdownRuntimes | ExecutionPhase::Terminated) => return Ok(()),
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            // The thread has ended and dropped the server.
            Err(RecvError::Closed) => {
                return thread.join().map_err(|_| anyhow!("the server panicked"));
            }
        }
    }
    drain(gateway);
    if let Some(quotas) = &gateway.shared_quotas {
        return_leases(quotas);
    }
    ensure!(
        !not_replaced.initialized(),
        "the running gateway goes on serving, since this one did not accept connections in time; see the log of that one"
    );
    Ok(())
}

fn begin(gateway: &GatewayState) {
    tracing::info!("shutting down: draining requests in flight");
    gateway.begin_shutdown();
}

/// Waits until every connection is closed, or until the connections that clients keep open have had no
/// request for [`IDLE_DRAIN_TIMEOUT`].
fn drain(gateway: &GatewayState) {
    let start = Instant::now();
    let mut last_busy = start;
    while gateway.metrics.connections.get() > 0 && last_busy.elapsed() < IDLE_DRAIN_TIMEOUT {
        let in_flight = gateway.metrics.in_flight.get() + gateway.unsent_responses.get();
        if in_flight > 0 {
            last_busy = Instant::now();
        }
        if start.elapsed() > DRAIN_TIMEOUT {
            tracing::warn!(in_flight, "drain timeout: requests in flight aborted");
            return;
        }
        thread::sleep(POLL_INTERVAL);
    }
}
