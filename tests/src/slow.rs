//! A way to a server that can be made slow, or lose what is on it without a word.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How soon a way that is no longer slow is quick.
const PAUSE: Duration = Duration::from_millis(2);

/// Passes on what comes, each piece as late as it is told.
#[derive(Debug)]
pub struct SlowWay {
    pub address: SocketAddr,
    delay: Arc<AtomicU64>,
    silences: Arc<AtomicU64>,
    passing: tokio::task::JoinHandle<()>,
}

impl SlowWay {
    /// A way to `server`, without a delay at first.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn to(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let delay = Arc::new(AtomicU64::new(0));
        let silences = Arc::new(AtomicU64::new(0));
        let (shared, silent) = (Arc::clone(&delay), Arc::clone(&silences));
        let passing = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if let Ok(server) = TcpStream::connect(server).await {
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    let line = Line::through(&silent);
                    tokio::spawn(pass(
                        from_client,
                        to_server,
                        line.clone(),
                        Arc::clone(&shared),
                    ));
                    tokio::spawn(pass(from_server, to_client, line, Arc::default()));
                }
            }
        });
        Ok(Self {
            address,
            delay,
            silences,
            passing,
        })
    }

    /// From now on each piece of a request takes so long.
    pub fn delay(&self, delay: Duration) {
        let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.delay.store(millis, Ordering::Relaxed);
    }

    /// From now on nothing comes through the connections that there are, and nobody is told. New
    /// ones are good: another machine has taken over the address, or a NAT forgot them.
    pub fn silence(&self) {
        self.silences.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection, until the next silence.
#[derive(Clone)]
struct Line {
    silences: Arc<AtomicU64>,
    made_after: u64,
}

impl Line {
    fn through(silences: &Arc<AtomicU64>) -> Self {
        Self {
            silences: Arc::clone(silences),
            made_after: silences.load(Ordering::Relaxed),
        }
    }

    fn is_silent(&self) -> bool {
        self.silences.load(Ordering::Relaxed) != self.made_after
    }
}

impl Drop for SlowWay {
    fn drop(&mut self) {
        self.passing.abort();
    }
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    line: Line,
    delay: Arc<AtomicU64>,
) {
    let mut piece = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        let came = Instant::now();
        while came.elapsed() < Duration::from_millis(delay.load(Ordering::Relaxed)) {
            tokio::time::sleep(PAUSE).await;
        }
        if line.is_silent() {
            continue;
        }
        if to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
    // Not even an end is told.
    if line.is_silent() {
        std::future::pending::<()>().await;
    }
}
