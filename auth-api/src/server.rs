//! Connections: accepted, bounded in time, and let finish at the end.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

use crate::app::App;

/// A peer that has not sent a whole head by then is cut off. It also ends an idle connection, so it
/// is longer than the gateway keeps one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);
/// What a request in flight may still take once we are told to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Answers requests until SIGTERM or SIGINT, then lets those in flight finish.
pub(crate) async fn run(listen: SocketAddr, internal: SocketAddr, app: App) -> Result<()> {
    let public = bind("AUTH_API_LISTEN", listen).await?;
    let internal = bind("AUTH_API_INTERNAL_LISTEN", internal).await?;
    tracing::info!(address = %public.local_addr()?, internal = %internal.local_addr()?, "listening");

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let connections = GracefulShutdown::new();
    let public_router = app.clone().public();
    let internal_router = app.internal();
    loop {
        let (stream, router) = tokio::select! {
            accepted = public.accept() => (accepted, &public_router),
            accepted = internal.accept() => (accepted, &internal_router),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        };
        match stream {
            Ok((stream, _)) => serve(stream, router.clone(), &connections),
            Err(error) => {
                // Out of file descriptors: closing connections will make room.
                tracing::error!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop((public, internal));
    tracing::info!(connections = connections.count(), "ending");
    if tokio::time::timeout(DRAIN_TIMEOUT, connections.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("requests still in flight were cut off");
    }
    Ok(())
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
