//! TCP listeners, connections with time limits, and the graceful shutdown.

mod connection_limit;
mod header_timeout;
mod write_timeout;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::Router;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::OwnedSemaphorePermit;

use self::connection_limit::ConnectionLimit;
use self::header_timeout::{ConnectionPhase, HeaderTimeoutStream};
use self::write_timeout::WriteTimeoutStream;
use crate::lifecycle::Lifecycle;
use crate::router;
use crate::state::AppState;

/// Longest time for which a connection is idle, or waits for its client to read. It is longer than the idle timeout of the gateway's
/// connections, which would else send requests on connections that are being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// Longest duration of the shutdown, after which requests in flight are aborted.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);
/// Time without requests after which every gateway is assumed to have closed its connections or to
/// know that they are about to be closed.
const DRAIN_IDLE_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for idle connections. A client that sends requests until then ignores `Connection: close`.
const MAX_DRAIN_WAIT: Duration = Duration::from_secs(15);
/// Interval at which the progress of the shutdown is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Pause after a failed `accept`, usually for lack of file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
const MAX_REQUEST_HEADERS_BYTES: usize = 64 * 1024;

/// Serves requests until SIGTERM, SIGINT or SIGHUP (its terminal was closed), then lets those in flight
/// complete.
pub(crate) async fn run(listen: SocketAddr, internal: SocketAddr, state: AppState) -> Result<()> {
    let public = bind("AUTH_API_LISTEN", listen).await?;
    let internal = bind("AUTH_API_INTERNAL_LISTEN", internal).await?;
    tracing::info!(address = %public.local_addr()?, internal = %internal.local_addr()?, "listening");

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let connections = GracefulShutdown::new();
    let (mut public_limit, mut internal_limit) =
        (ConnectionLimit::public(), ConnectionLimit::internal());
    let lifecycle = state.lifecycle.clone();
    let public_router = router::public(state.clone());
    let internal_router = router::internal(state);
    tokio::select! {
        () = accept(&public, &mut public_limit, &public_router, &connections) => {}
        () = accept(&internal, &mut internal_limit, &internal_router, &connections) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = hangup.recv() => {}
    }
    tracing::info!(connections = connections.count(), "shutting down");
    lifecycle.begin_shutdown();
    let deadline = tokio::time::Instant::now() + SHUTDOWN_TIMEOUT;
    tokio::select! {
        () = wait_until_idle(&lifecycle, &connections) => {}
        () = accept(&public, &mut public_limit, &public_router, &connections) => {}
    }
    drop((public, internal));
    let drained = async {
        connections.shutdown().await;
        while lifecycle.has_pending_operations() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    if tokio::time::timeout_at(deadline, drained).await.is_err() {
        tracing::warn!("shutdown timeout: requests in flight aborted");
    }
    Ok(())
}

/// Accepts and serves connections without end.
async fn accept(
    listener: &TcpListener,
    limit: &mut ConnectionLimit,
    router: &Router,
    connections: &GracefulShutdown,
) {
    loop {
        let permit = limit.acquire().await;
        match listener.accept().await {
            Ok((stream, _)) => serve(stream, permit, router.clone(), connections),
            Err(error) => {
                tracing::error!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

/// Waits until every connection is closed or no request has arrived for [`DRAIN_IDLE_TIMEOUT`].
async fn wait_until_idle(lifecycle: &Lifecycle, connections: &GracefulShutdown) {
    let (start, mut idle_since) = (Instant::now(), Instant::now());
    let mut seen = lifecycle.requests();
    while connections.count() > 0
        && idle_since.elapsed() < DRAIN_IDLE_TIMEOUT
        && start.elapsed() < MAX_DRAIN_WAIT
    {
        tokio::time::sleep(POLL_INTERVAL).await;
        if lifecycle.requests() != seen {
            seen = lifecycle.requests();
            idle_since = Instant::now();
        }
    }
}

async fn bind(setting: &str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{setting}: listening on {address}"))
}

fn serve(
    stream: TcpStream,
    permit: OwnedSemaphorePermit,
    router: Router,
    connections: &GracefulShutdown,
) {
    // Without Nagle's algorithm, which would delay a small response until the previous one is acknowledged.
    let _ = stream.set_nodelay(true);
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        // hyper's timer begins when the connection is idle.
        .header_read_timeout(IDLE_TIMEOUT)
        .max_buf_size(MAX_REQUEST_HEADERS_BYTES);
    let phase = ConnectionPhase::new();
    let stream = HeaderTimeoutStream::new(stream, phase.clone());
    let stream = WriteTimeoutStream::new(stream, IDLE_TIMEOUT);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request| {
        phase.request_started();
        let (phase, response) = (phase.clone(), router.call(request));
        async move {
            let response = response.await;
            phase.request_finished();
            response
        }
    });
    let connection = builder
        .serve_connection(TokioIo::new(stream), service)
        .into_owned();
    let connection = connections.watch(connection);
    tokio::spawn(async move {
        let _permit = permit;
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection failed");
        }
    });
}
