//! A back end that a test scripts byte by byte, and that keeps what it was sent.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

use crate::address;

/// What a back end does with a request.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Sends these bytes.
    Bytes(Vec<u8>),
    /// Sends these bytes and closes the connection.
    Last(Vec<u8>),
    /// Sends these bytes once it is told to.
    When(Arc<Notify>, Vec<u8>),
    /// Says nothing and keeps the connection open.
    Silence,
}

impl Reply {
    /// An answer of `status` with a body.
    #[must_use]
    pub fn of(status: u16, body: &str) -> Self {
        let length = body.len();
        let head = format!("HTTP/1.1 {status} Scripted\r\nContent-Length: {length}\r\n\r\n");
        Self::Bytes((head + body).into_bytes())
    }
}

/// A request as it came, head and body.
pub type Received = String;

/// A listening back end. Health checks of the gateway are answered 200 and not kept.
#[derive(Debug)]
pub struct BackEnd {
    pub address: SocketAddr,
    log: Arc<Log>,
    task: JoinHandle<()>,
}

/// What came, health checks left out.
#[derive(Debug, Default)]
struct Log {
    received: Mutex<Vec<Received>>,
    /// Connections on which a request came.
    connections: AtomicUsize,
}

impl BackEnd {
    /// Starts one that answers each request as `script` says.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start<F>(script: F) -> Result<Self>
    where
        F: Fn(&Received) -> Reply + Send + Sync + 'static,
    {
        Self::at(address::free(), script).await
    }

    /// [`BackEnd::start`] at an address that the test knows.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub async fn at<F>(address: SocketAddr, script: F) -> Result<Self>
    where
        F: Fn(&Received) -> Reply + Send + Sync + 'static,
    {
        let listener = TcpListener::bind(address).await?;
        let log = Arc::new(Log::default());
        let (script, kept) = (Arc::new(script), Arc::clone(&log));
        let task = tokio::spawn(async move {
            // They end with this task.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&script), Arc::clone(&kept)));
            }
        });
        Ok(Self { address, log, task })
    }

    /// One that answers 200 with `ok` to everything.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn good() -> Result<Self> {
        Self::start(|_| Reply::of(200, "ok")).await
    }

    /// Every request so far.
    ///
    /// # Panics
    /// When a script has panicked.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.log.received.lock().expect("no script panics").clone()
    }

    /// Connections on which a request came so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.log.connections.load(Ordering::Relaxed)
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<F>(mut stream: TcpStream, script: Arc<F>, log: Arc<Log>)
where
    F: Fn(&Received) -> Reply + Send + Sync + 'static,
{
    let mut buffer = Vec::new();
    let mut is_counted = false;
    while let Some(request) = read(&mut stream, &mut buffer).await {
        let reply = if request.contains("user-agent: gateway-health-check") {
            Reply::of(200, "")
        } else {
            let mut received = log.received.lock().expect("no script panics");
            received.push(request.clone());
            drop(received);
            if !is_counted {
                is_counted = true;
                log.connections.fetch_add(1, Ordering::Relaxed);
            }
            script(&request)
        };
        match reply {
            Reply::Bytes(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Reply::Last(bytes) => {
                let _ = stream.write_all(&bytes).await;
                return;
            }
            Reply::When(told, bytes) => {
                told.notified().await;
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Reply::Silence => std::future::pending().await,
        }
    }
}

/// A head and as much of a body as its length or its chunks announce, which is asked for where the
/// client waits for that.
async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Received> {
    const GO_ON: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    let mut has_asked = false;
    loop {
        let text = String::from_utf8_lossy(buffer).into_owned();
        if let Some(end) = text.find("\r\n\r\n").map(|end| end + 4) {
            let head = text[..end].to_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            let end = if head.contains("transfer-encoding: chunked") {
                text[end..].find("0\r\n\r\n").map(|last| end + last + 5)
            } else {
                Some(end + length.unwrap_or(0))
            };
            if let Some(end) = end.filter(|end| *end <= buffer.len()) {
                let request: Vec<u8> = buffer.drain(..end).collect();
                return Some(String::from_utf8_lossy(&request).into_owned());
            }
            if head.contains("expect: 100-continue") && !has_asked {
                has_asked = true;
                stream.write_all(GO_ON).await.ok()?;
            }
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).await {
            Ok(count @ 1..) => buffer.extend_from_slice(&chunk[..count]),
            _ => return None,
        }
    }
}
