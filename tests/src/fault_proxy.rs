//! A TCP proxy that injects faults between a program and its server: delays, and connections that
//! silently lose everything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// Interval at which a delayed chunk checks for a change of the delay.
const DELAY_POLL_INTERVAL: Duration = Duration::from_millis(2);

/// A TCP proxy in front of one server.
#[derive(Debug)]
pub struct FaultProxy {
    pub address: SocketAddr,
    delay_ms: Arc<AtomicU64>,
    blackholes: Arc<AtomicU64>,
    server: Arc<Mutex<SocketAddr>>,
    task: JoinHandle<()>,
}

impl FaultProxy {
    /// Starts a proxy to `server` that forwards without delay.
    ///
    /// # Errors
    /// Returns an error if the proxy cannot listen.
    pub async fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let delay_ms = Arc::new(AtomicU64::new(0));
        let blackholes = Arc::new(AtomicU64::new(0));
        let server = Arc::new(Mutex::new(server));
        let task = tokio::spawn({
            let (delay_ms, blackholes) = (Arc::clone(&delay_ms), Arc::clone(&blackholes));
            let server = Arc::clone(&server);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let server = *server.lock().await;
                    if let Ok(server) = TcpStream::connect(server).await {
                        let (from_client, to_client) = client.into_split();
                        let (from_server, to_server) = server.into_split();
                        let blackhole = Blackhole::new(&blackholes);
                        tokio::spawn(forward(
                            from_client,
                            to_server,
                            blackhole.clone(),
                            Arc::clone(&delay_ms),
                        ));
                        tokio::spawn(forward(from_server, to_client, blackhole, Arc::default()));
                    }
                }
            }
        });
        Ok(Self {
            address,
            delay_ms,
            blackholes,
            server,
            task,
        })
    }

    /// Connects to another server from now on, as an address does that follows a failover. Open
    /// connections stay where they are.
    pub async fn lead_to(&self, server: SocketAddr) {
        *self.server.lock().await = server;
    }

    /// Delays each chunk from a client to the server by `delay` from now on.
    pub fn set_delay(&self, delay: Duration) {
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.delay_ms.store(delay_ms, Ordering::Relaxed);
    }

    /// Drops everything on the connections that are open now, without closing them. New
    /// connections work: this is what clients see when another host takes over the server's
    /// address, or when a NAT gateway forgets its connections.
    pub fn blackhole_open_connections(&self) {
        self.blackholes.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// State of one connection: active from the first blackhole after the connection was opened.
#[derive(Clone)]
struct Blackhole {
    count: Arc<AtomicU64>,
    count_when_opened: u64,
}

impl Blackhole {
    fn new(count: &Arc<AtomicU64>) -> Self {
        Self {
            count: Arc::clone(count),
            count_when_opened: count.load(Ordering::Relaxed),
        }
    }

    fn is_active(&self) -> bool {
        self.count.load(Ordering::Relaxed) != self.count_when_opened
    }
}

/// Forwards one direction of a connection.
async fn forward(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    blackhole: Blackhole,
    delay_ms: Arc<AtomicU64>,
) {
    let mut chunk = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut chunk).await {
        let received_at = Instant::now();
        while received_at.elapsed() < Duration::from_millis(delay_ms.load(Ordering::Relaxed)) {
            tokio::time::sleep(DELAY_POLL_INTERVAL).await;
        }
        if blackhole.is_active() {
            continue;
        }
        if to.write_all(&chunk[..length]).await.is_err() {
            return;
        }
    }
    // The end of the connection is not forwarded either.
    if blackhole.is_active() {
        std::future::pending::<()>().await;
    }
}
