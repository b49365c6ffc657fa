//! A mock upstream server: a test scripts its responses byte by byte and reads the requests that
//! it received.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::address;
use crate::wait;

/// `User-Agent` of the gateway's health checks, in lower case as the gateway sends header names.
const HEALTH_CHECK_HEADER: &str = "user-agent: gateway-health-check";

/// A scripted response to one request.
#[derive(Debug, Clone)]
pub enum MockResponse {
    /// Sends these bytes and keeps the connection open.
    Bytes(Vec<u8>),
    /// Sends these bytes and closes the connection.
    BytesThenClose(Vec<u8>),
    /// Sends these bytes after the notification and keeps the connection open.
    BytesAfter(Arc<Notify>, Vec<u8>),
    /// Sends nothing and closes the connection after this time.
    CloseAfter(Duration),
    /// Sends nothing and keeps the connection open.
    Never,
}

impl MockResponse {
    /// Returns a response with a status and a body.
    #[must_use]
    pub fn new(status: u16, body: &str) -> Self {
        let length = body.len();
        let headers = format!("HTTP/1.1 {status} Scripted\r\nContent-Length: {length}\r\n\r\n");
        Self::Bytes((headers + body).into_bytes())
    }
}

/// A request as it was received: request line, headers and body.
pub type ReceivedRequest = String;

/// Returns the request target (path and query) of a received request.
#[must_use]
pub fn request_target(request: &str) -> &str {
    request.split(' ').nth(1).unwrap_or("")
}

/// A listening mock upstream server. It returns 200 to the gateway's health checks and does not
/// record them.
#[derive(Debug)]
pub struct MockUpstream {
    pub address: SocketAddr,
    record: Arc<Record>,
    task: JoinHandle<()>,
}

/// A completed TLS handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsHandshake {
    /// Name that the client sent (SNI).
    pub server_name: Option<String>,
    /// Protocol that ALPN has selected.
    pub alpn_protocol: Option<Vec<u8>>,
}

/// Requests received so far, without health checks.
#[derive(Debug, Default)]
struct Record {
    requests: Mutex<Vec<ReceivedRequest>>,
    /// Number of connections with at least one request.
    connections: AtomicUsize,
    handshakes: Mutex<Vec<TlsHandshake>>,
}

impl Record {
    fn add_handshake(&self, stream: &TlsStream<TcpStream>) {
        let (_, tls) = stream.get_ref();
        let handshake = TlsHandshake {
            server_name: tls.server_name().map(ToOwned::to_owned),
            alpn_protocol: tls.alpn_protocol().map(<[u8]>::to_vec),
        };
        let mut handshakes = self.handshakes.lock().expect("no task panicked");
        handshakes.push(handshake);
    }
}

impl MockUpstream {
    /// Starts a server that sends the response that `script` returns for each request.
    ///
    /// # Errors
    /// Returns an error if the server cannot listen.
    pub async fn start<F>(script: F) -> Result<Self>
    where
        F: Fn(&ReceivedRequest) -> MockResponse + Send + Sync + 'static,
    {
        Self::start_at(address::unused_loopback(), script).await
    }

    /// Like [`MockUpstream::start`], at a given address.
    ///
    /// # Errors
    /// Returns an error if the server cannot listen there.
    pub async fn start_at<F>(address: SocketAddr, script: F) -> Result<Self>
    where
        F: Fn(&ReceivedRequest) -> MockResponse + Send + Sync + 'static,
    {
        Self::listen(address, script, None).await
    }

    /// Like [`MockUpstream::start`], over TLS.
    ///
    /// # Errors
    /// Returns an error if the server cannot listen.
    pub async fn start_over_tls<F>(config: ServerConfig, script: F) -> Result<Self>
    where
        F: Fn(&ReceivedRequest) -> MockResponse + Send + Sync + 'static,
    {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Self::listen(address::unused_loopback(), script, Some(acceptor)).await
    }

    async fn listen<F>(
        address: SocketAddr,
        script: F,
        acceptor: Option<TlsAcceptor>,
    ) -> Result<Self>
    where
        F: Fn(&ReceivedRequest) -> MockResponse + Send + Sync + 'static,
    {
        let listener = TcpListener::bind(address).await?;
        let record = Arc::new(Record::default());
        let script = Arc::new(script);
        let task = tokio::spawn({
            let record = Arc::clone(&record);
            async move {
                // Dropped with this task, which aborts the connections.
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let (script, record) = (Arc::clone(&script), Arc::clone(&record));
                    let Some(acceptor) = acceptor.clone() else {
                        connections.spawn(serve(stream, script, record));
                        continue;
                    };
                    connections.spawn(async move {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            record.add_handshake(&stream);
                            serve(stream, script, record).await;
                        }
                    });
                }
            }
        });
        Ok(Self {
            address,
            record,
            task,
        })
    }

    /// Returns the TLS handshakes that have been completed so far, also those of health checks.
    ///
    /// # Panics
    /// Panics if a connection's task has panicked.
    #[must_use]
    pub fn handshakes(&self) -> Vec<TlsHandshake> {
        let handshakes = self.record.handshakes.lock();
        handshakes.expect("no task panicked").clone()
    }

    /// Starts a server that returns 200 with the body `ok` to every request.
    ///
    /// # Errors
    /// Returns an error if the server cannot listen.
    pub async fn always_ok() -> Result<Self> {
        Self::start(|_| MockResponse::new(200, "ok")).await
    }

    /// Returns all requests received so far.
    ///
    /// # Panics
    /// Panics if a connection's task has panicked.
    #[must_use]
    pub fn received_requests(&self) -> Vec<ReceivedRequest> {
        let requests = self.record.requests.lock();
        requests.expect("no task panicked").clone()
    }

    /// Waits until at least `count` requests have been received.
    ///
    /// # Errors
    /// Returns an error after [`wait::TIMEOUT`].
    pub async fn wait_for_requests(&self, count: usize) -> Result<()> {
        wait::until(&format!("{count} requests"), async || {
            self.received_requests().len() >= count
        })
        .await
    }

    /// Returns the number of connections on which a request has been received so far.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.record.connections.load(Ordering::Relaxed)
    }
}

impl Drop for MockUpstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<S, F>(mut stream: S, script: Arc<F>, record: Arc<Record>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Fn(&ReceivedRequest) -> MockResponse + Send + Sync + 'static,
{
    let mut buffer = Vec::new();
    let mut is_counted = false;
    while let Some(request) = read_request(&mut stream, &mut buffer).await {
        let response = if request.contains(HEALTH_CHECK_HEADER) {
            MockResponse::new(200, "")
        } else {
            let mut requests = record.requests.lock().expect("no task panicked");
            requests.push(request.clone());
            drop(requests);
            if !is_counted {
                is_counted = true;
                record.connections.fetch_add(1, Ordering::Relaxed);
            }
            script(&request)
        };
        match response {
            MockResponse::Bytes(bytes) => {
                if write(&mut stream, &bytes).await.is_err() {
                    return;
                }
            }
            MockResponse::BytesThenClose(bytes) => {
                let _ = write(&mut stream, &bytes).await;
                let _ = stream.shutdown().await;
                return;
            }
            MockResponse::BytesAfter(notify, bytes) => {
                notify.notified().await;
                if write(&mut stream, &bytes).await.is_err() {
                    return;
                }
            }
            MockResponse::CloseAfter(delay) => {
                tokio::time::sleep(delay).await;
                return;
            }
            MockResponse::Never => std::future::pending().await,
        }
    }
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// Reads one request with the body that `Content-Length` or `Transfer-Encoding` announces. Sends
/// `100 Continue` where the client expects it. Returns none if the connection closes before.
async fn read_request(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    buffer: &mut Vec<u8>,
) -> Option<ReceivedRequest> {
    const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    let mut has_sent_continue = false;
    loop {
        let text = String::from_utf8_lossy(buffer).into_owned();
        if let Some(headers_end) = text.find("\r\n\r\n").map(|end| end + 4) {
            let headers = text[..headers_end].to_lowercase();
            let content_length = headers
                .lines()
                .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            let end = if headers.contains("transfer-encoding: chunked") {
                text[headers_end..]
                    .find("0\r\n\r\n")
                    .map(|last_chunk| headers_end + last_chunk + 5)
            } else {
                Some(headers_end + content_length.unwrap_or(0))
            };
            if let Some(end) = end.filter(|end| *end <= buffer.len()) {
                let request: Vec<u8> = buffer.drain(..end).collect();
                return Some(String::from_utf8_lossy(&request).into_owned());
            }
            if headers.contains("expect: 100-continue") && !has_sent_continue {
                has_sent_continue = true;
                write(stream, CONTINUE).await.ok()?;
            }
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).await {
            Ok(count @ 1..) => buffer.extend_from_slice(&chunk[..count]),
            _ => return None,
        }
    }
}
