//! Connections: accepted, bounded in time, and let finish at the end.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

use crate::app::App;
use crate::lifecycle::Lifecycle;

/// A peer that has not sent a whole head by then is cut off. It also ends an idle connection, so it
/// is longer than the gateway keeps one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);
/// Once we are told to end, requests in flight may take until then.
const END: Duration = Duration::from_secs(30);
/// Without requests for so long, a gateway has heard that its connections are about to end.
const FAREWELL: Duration = Duration::from_secs(1);
/// Whoever goes on asking until then has not heard, and will not.
const LONGEST_FAREWELL: Duration = Duration::from_secs(15);
/// Between two looks at whether there is still something to do.
const PAUSE: Duration = Duration::from_millis(10);
const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Answers requests until SIGTERM or SIGINT, then lets those in flight finish.
pub(crate) async fn run(listen: SocketAddr, internal: SocketAddr, app: App) -> Result<()> {
    let public = bind("AUTH_API_LISTEN", listen).await?;
    let internal = bind("AUTH_API_INTERNAL_LISTEN", internal).await?;
    tracing::info!(address = %public.local_addr()?, internal = %internal.local_addr()?, "listening");

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let connections = GracefulShutdown::new();
    let lifecycle = app.lifecycle.clone();
    let public_router = app.clone().public();
    let internal_router = app.internal();
    tokio::select! {
        () = accept(&public, &public_router, &connections) => {}
        () = accept(&internal, &internal_router, &connections) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(connections = connections.count(), "ending");
    lifecycle.begin_to_end();
    let end = tokio::time::Instant::now() + END;
    tokio::select! {
        () = farewell(&lifecycle, &connections) => {}
        () = accept(&public, &public_router, &connections) => {}
    }
    drop((public, internal));
    let drained = async {
        connections.shutdown().await;
        while lifecycle.is_at_work() {
            tokio::time::sleep(PAUSE).await;
        }
    };
    if tokio::time::timeout_at(end, drained).await.is_err() {
        tracing::warn!("requests still in flight were cut off");
    }
    Ok(())
}

/// Serves whoever comes, for ever.
async fn accept(listener: &TcpListener, router: &Router, connections: &GracefulShutdown) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => serve(stream, router.clone(), connections),
            Err(error) => {
                // Out of file descriptors: closing connections will make room.
                tracing::error!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Until every connection is closed, or no request has come for [`FAREWELL`] on those that are not.
async fn farewell(lifecycle: &Lifecycle, connections: &GracefulShutdown) {
    let (start, mut quiet_since) = (Instant::now(), Instant::now());
    let mut seen = lifecycle.requests();
    while connections.count() > 0
        && quiet_since.elapsed() < FAREWELL
        && start.elapsed() < LONGEST_FAREWELL
    {
        tokio::time::sleep(PAUSE).await;
        if lifecycle.requests() != seen {
            seen = lifecycle.requests();
            quiet_since = Instant::now();
        }
    }
}

async fn bind(setting: &str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{setting}: listening on {address}"))
}

fn serve(stream: TcpStream, router: Router, connections: &GracefulShutdown) {
    // Small answers must not wait for an acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES);
    let service = TowerToHyperService::new(router);
    let connection = builder
        .serve_connection(TokioIo::new(stream), service)
        .into_owned();
    let connection = connections.watch(connection);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection broke");
        }
    });
}
