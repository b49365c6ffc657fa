//! Proxies between auth-api and its stores that stop at the N-th request which auth-api makes to them.
//!
//! They read as much of the protocols of PostgreSQL and Redis as they need to tell requests and responses apart. A
//! test sets a [`Breakpoint`], and decides what happens at it: the connection breaks, the store responds with an error,
//! both stores become unreachable, or, having killed auth-api or disconnected its client, that all goes on. With
//! N = 1, 2, … until an operation completes without reaching N, it is interrupted at each of its steps, since
//! auth-api has no state but that of the stores.

mod postgres;
mod redis;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, oneshot, watch};
use tokio::task::JoinHandle;

/// A store with a protocol of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    Postgres,
    Redis,
}

/// Place of a breakpoint relative to its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The store has not received the request.
    BeforeRequest,
    /// The store has carried the request out, and auth-api has not received the response.
    BeforeResponse,
}

/// Place at which an operation is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breakpoint {
    /// Number of the request to a store, from 1 on, since the breakpoint was set.
    pub request: usize,
    pub place: Place,
}

/// Continuation after a breakpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Continuation {
    /// The request or the response is forwarded.
    Forward,
    /// The connection breaks, and others work.
    BreakConnection,
    /// The store responds with an error. Before a request only: it is not forwarded.
    RespondWithError,
    /// All connections to both stores break, and no others are possible until [`StoreProxies::reconnect`].
    Disconnect,
}

/// A breakpoint that was reached. Everything on its connection waits for [`Self::proceed`].
#[derive(Debug)]
pub struct Reached {
    pub store: StoreKind,
    /// Statement of SQL, or arguments of a Redis command.
    pub request: String,
    continuation: oneshot::Sender<Continuation>,
}

impl Reached {
    /// Ends the wait.
    pub fn proceed(self, continuation: Continuation) {
        // The connection may have ended meanwhile, with the process.
        let _ = self.continuation.send(continuation);
    }
}

/// Proxies in front of a PostgreSQL and a Redis server.
#[derive(Debug)]
pub struct StoreProxies {
    pub postgres: SocketAddr,
    pub redis: SocketAddr,
    control: Control,
    tasks: [JoinHandle<()>; 2],
}

impl StoreProxies {
    /// Starts proxies that forward everything.
    ///
    /// # Errors
    /// Returns an error if a proxy cannot listen.
    pub async fn start(postgres: SocketAddr, redis: SocketAddr) -> Result<Self> {
        let control = Control::default();
        let (postgres, postgres_task) = listen(StoreKind::Postgres, postgres, &control).await?;
        let (redis, redis_task) = listen(StoreKind::Redis, redis, &control).await?;
        Ok(Self {
            postgres,
            redis,
            control,
            tasks: [postgres_task, redis_task],
        })
    }

    /// Sets a breakpoint in place of the one before, and counts requests from 0 on.
    pub async fn set(&self, breakpoint: Breakpoint) -> oneshot::Receiver<Reached> {
        let (sender, reached) = oneshot::channel();
        let armed = Armed {
            breakpoint,
            requests: 0,
            sender,
        };
        *self.control.armed.lock().await = Some(armed);
        reached
    }

    /// Removes the breakpoint.
    pub async fn clear(&self) {
        *self.control.armed.lock().await = None;
    }

    /// Makes connections possible again after [`Continuation::Disconnect`].
    pub fn reconnect(&self) {
        self.control.network.send_replace(Network::Connected);
    }
}

impl Drop for StoreProxies {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    Connected,
    Disconnected,
}

/// State that both proxies share. Cheap to clone.
#[derive(Debug, Clone)]
struct Control {
    armed: Arc<Mutex<Option<Armed>>>,
    network: watch::Sender<Network>,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            armed: Arc::default(),
            network: watch::Sender::new(Network::Connected),
        }
    }
}

#[derive(Debug)]
struct Armed {
    breakpoint: Breakpoint,
    requests: usize,
    sender: oneshot::Sender<Reached>,
}

impl Control {
    /// Counts a request. Returns the breakpoint if it is at this request.
    async fn count(&self, store: StoreKind, request: &str) -> Option<Waiting> {
        let mut armed = self.armed.lock().await;
        let current = armed.as_mut()?;
        current.requests += 1;
        if current.requests < current.breakpoint.request {
            return None;
        }
        let Armed {
            breakpoint, sender, ..
        } = armed.take()?;
        Some(Waiting {
            place: breakpoint.place,
            store,
            request: request.to_owned(),
            sender,
            network: self.network.clone(),
        })
    }
}

/// A breakpoint at a request that is about to be forwarded.
struct Waiting {
    place: Place,
    store: StoreKind,
    request: String,
    sender: oneshot::Sender<Reached>,
    network: watch::Sender<Network>,
}

impl Waiting {
    /// Reports the breakpoint as reached and waits for the test.
    async fn reached(self) -> Continuation {
        let (continuation, decided) = oneshot::channel();
        let reached = Reached {
            store: self.store,
            request: self.request,
            continuation,
        };
        if self.sender.send(reached).is_err() {
            return Continuation::Forward;
        }
        let continuation = decided.await.unwrap_or(Continuation::BreakConnection);
        if continuation == Continuation::Disconnect {
            self.network.send_replace(Network::Disconnected);
        }
        continuation
    }
}

async fn listen(
    store: StoreKind,
    server: SocketAddr,
    control: &Control,
) -> Result<(SocketAddr, JoinHandle<()>)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let control = control.clone();
    let task = tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let control = control.clone();
            tokio::spawn(async move {
                let mut network = control.network.subscribe();
                let disconnected = async {
                    let is_disconnected = |network: &Network| *network == Network::Disconnected;
                    drop(network.wait_for(is_disconnected).await);
                };
                tokio::select! {
                    biased;
                    () = disconnected => {}
                    _ = forward(store, client, server, &control) => {}
                }
            });
        }
    });
    Ok((address, task))
}

/// Forwards a connection until one side closes it or a breakpoint breaks it.
async fn forward(
    store: StoreKind,
    client: TcpStream,
    server: SocketAddr,
    control: &Control,
) -> Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let connection = Connection {
        store,
        control,
        to_client: Mutex::new(to_client),
        progress: watch::Sender::new(Progress::default()),
        held: Mutex::default(),
    };
    tokio::select! {
        result = connection.forward_requests(BufReader::new(from_client), to_server) => result,
        result = connection.forward_responses(BufReader::new(from_server)) => result,
    }
}

/// A part of what a client sends: one request, or bytes without a response of their own.
#[derive(Debug, Default)]
struct Unit {
    bytes: Vec<u8>,
    /// Description of a request that is part of an operation.
    operation: Option<String>,
    /// Responses that end the server's reply to it: one or none.
    responses: u64,
}

/// Numbers of requests and responses of a connection.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    requests: u64,
    responses: u64,
}

/// One connection through a proxy.
struct Connection<'c> {
    store: StoreKind,
    control: &'c Control,
    to_client: Mutex<OwnedWriteHalf>,
    progress: watch::Sender<Progress>,
    /// Breakpoint before the response with this number.
    held: Mutex<Option<(u64, Waiting)>>,
}

impl Connection<'_> {
    async fn forward_requests(
        &self,
        mut from_client: BufReader<OwnedReadHalf>,
        mut to_server: OwnedWriteHalf,
    ) -> Result<()> {
        let mut postgres = postgres::Requests::default();
        loop {
            let unit = match self.store {
                StoreKind::Postgres => postgres.read(&mut from_client).await?,
                StoreKind::Redis => redis::read_request(&mut from_client).await?,
            };
            let waiting = match &unit.operation {
                Some(operation) => self.control.count(self.store, operation).await,
                None => None,
            };
            match waiting {
                Some(waiting) if waiting.place == Place::BeforeRequest => {
                    match waiting.reached().await {
                        Continuation::Forward => {}
                        Continuation::RespondWithError => {
                            self.respond_with_error().await?;
                            continue;
                        }
                        Continuation::BreakConnection | Continuation::Disconnect => return Ok(()),
                    }
                }
                Some(waiting) => {
                    let response = self.progress.borrow().requests + 1;
                    *self.held.lock().await = Some((response, waiting));
                }
                None => {}
            }
            self.progress
                .send_modify(|progress| progress.requests += unit.responses);
            to_server.write_all(&unit.bytes).await?;
        }
    }

    /// Responds in place of the server, once it has responded to everything before.
    async fn respond_with_error(&self) -> Result<()> {
        let mut progress = self.progress.subscribe();
        let has_responded = |progress: &Progress| progress.responses == progress.requests;
        drop(progress.wait_for(has_responded).await);
        let response = match self.store {
            StoreKind::Postgres => postgres::error_response(),
            StoreKind::Redis => redis::ERROR_RESPONSE.to_vec(),
        };
        self.to_client.lock().await.write_all(&response).await?;
        Ok(())
    }

    async fn forward_responses(&self, mut from_server: BufReader<OwnedReadHalf>) -> Result<()> {
        let mut postgres = postgres::Responses::default();
        loop {
            let unit = match self.store {
                StoreKind::Postgres => postgres.read(&mut from_server).await?,
                StoreKind::Redis => redis::read_response(&mut from_server).await?,
            };
            let number = self.progress.borrow().responses + 1;
            let mut held = self.held.lock().await;
            let is_held = held
                .as_ref()
                .is_some_and(|(response, _)| unit.responses > 0 && *response == number);
            if is_held {
                let (_, waiting) = held.take().context("the breakpoint was just there")?;
                drop(held);
                if waiting.reached().await != Continuation::Forward {
                    return Ok(());
                }
            } else {
                drop(held);
            }
            self.to_client.lock().await.write_all(&unit.bytes).await?;
            self.progress
                .send_modify(|progress| progress.responses += unit.responses);
        }
    }
}
