//! Interruptions of one operation of auth-api at each of its requests to PostgreSQL and Redis, or at each of its writes
//! to the embedded store.
//!
//! A [`Bench`] has two replicas on the same stores: the one that is interrupted, whose requests to the servers pass
//! through [`StoreProxies`], and a witness, which connects to them directly. Commands of an operator are interrupted
//! like the first one.
//!
//! The embedded store has no connection to break. There the limit of the size of files makes the N-th write to the
//! write-ahead log fail in the middle of a page, and every one after it. What the file then has is what it would have if
//! the process had been killed at that write; so it is killed as soon as it has responded.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::oneshot;

use crate::replicas::{Replicas, Store};
use crate::settings::{Settings, redis_settings, settings};
use crate::store_breakpoint::{Breakpoint, Continuation, Place, Reached, StoreProxies};
use crate::wait;

/// Sizes of the write-ahead log's parts for pages of 4096 bytes (sqlite.org/fileformat.html, section 4).
const WAL_HEADER: u64 = 32;
const WAL_FRAME: u64 = 24 + 4096;

/// Part of the message of a command that has not reached a store in time.
const UNAVAILABLE: &str = "is unavailable";

/// Index of the replica that connects to the stores directly.
const WITNESS: usize = 0;
/// Index of the replica that is interrupted.
const INTERRUPTED: usize = 1;

/// Cause of an interruption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection breaks before the store has received the request.
    RequestLost,
    /// The connection breaks after the store has carried the request out.
    ResponseLost,
    /// The store responds with an error.
    StoreError,
    /// Both stores become unreachable before the request, until the operation has failed.
    OutageBefore,
    /// Likewise after the request.
    OutageAfter,
    /// The process is killed before the store has received the request.
    KilledBefore,
    /// The process is killed after the store has carried the request out.
    KilledAfter,
    /// The client disconnects before the store has received the request.
    ClientGoneBefore,
    /// The client disconnects after the store has carried the request out.
    ClientGoneAfter,
    /// The disk is full from a write to the SQLite file on, until the operation has failed.
    DiskFull,
    /// The process is killed at a write to the SQLite file.
    KilledAtWrite,
}

impl Fault {
    fn place(self) -> Place {
        match self {
            Self::RequestLost
            | Self::StoreError
            | Self::OutageBefore
            | Self::KilledBefore
            | Self::ClientGoneBefore
            | Self::DiskFull
            | Self::KilledAtWrite => Place::BeforeRequest,
            Self::ResponseLost | Self::OutageAfter | Self::KilledAfter | Self::ClientGoneAfter => {
                Place::BeforeResponse
            }
        }
    }

    fn continuation(self) -> Continuation {
        match self {
            Self::StoreError => Continuation::RespondWithError,
            Self::OutageBefore | Self::OutageAfter => Continuation::Disconnect,
            Self::ClientGoneBefore | Self::ClientGoneAfter => Continuation::Forward,
            Self::RequestLost
            | Self::ResponseLost
            | Self::KilledBefore
            | Self::KilledAfter
            | Self::DiskFull
            | Self::KilledAtWrite => Continuation::BreakConnection,
        }
    }

    fn kills(self) -> bool {
        matches!(self, Self::KilledBefore | Self::KilledAfter)
    }

    /// Returns whether no store is reachable any more when the operation fails.
    #[must_use]
    pub fn is_outage(self) -> bool {
        matches!(
            self,
            Self::OutageBefore | Self::OutageAfter | Self::DiskFull | Self::KilledAtWrite
        )
    }

    fn disconnects_client(self) -> bool {
        matches!(self, Self::ClientGoneBefore | Self::ClientGoneAfter)
    }
}

/// A request of a client, on a connection of its own.
#[derive(Debug, Clone, Default)]
pub struct HttpRequest {
    pub method: &'static str,
    pub path: String,
    /// Value of `Authorization`.
    pub authorization: Option<String>,
    pub content_type: &'static str,
    pub body: String,
}

impl HttpRequest {
    #[must_use]
    pub fn get(path: &str) -> Self {
        Self {
            method: "GET",
            path: path.to_owned(),
            ..Self::default()
        }
    }

    #[must_use]
    pub fn post(path: &str) -> Self {
        Self {
            method: "POST",
            ..Self::get(path)
        }
    }

    #[must_use]
    pub fn json(self, body: &Value) -> Self {
        Self {
            content_type: "application/json",
            body: body.to_string(),
            ..self
        }
    }

    #[must_use]
    pub fn bearer(self, token: &str) -> Self {
        Self {
            authorization: Some(format!("Bearer {token}")),
            ..self
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let Self {
            method,
            path,
            content_type,
            body,
            ..
        } = self;
        let mut lines = vec![
            format!("{method} {path} HTTP/1.1"),
            "host: x".to_owned(),
            "connection: close".to_owned(),
            format!("content-length: {}", body.len()),
        ];
        if !content_type.is_empty() {
            lines.push(format!("content-type: {content_type}"));
        }
        if let Some(authorization) = &self.authorization {
            lines.push(format!("authorization: {authorization}"));
        }
        format!("{}\r\n\r\n{body}", lines.join("\r\n")).into_bytes()
    }
}

/// A complete response.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub body: String,
}

impl Reply {
    /// Returns the body as JSON, null if it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// Tokens of a session.
#[derive(Debug, Clone)]
pub struct Tokens {
    pub access: String,
    pub refresh: String,
}

impl Tokens {
    /// Returns the tokens of a response.
    ///
    /// # Errors
    /// Returns an error if it lacks one.
    pub fn of(reply: &Reply) -> Result<Self> {
        let body = reply.json();
        let token = |name: &str| {
            let token = body[name].as_str().map(str::to_owned);
            token.with_context(|| format!("{name} in {reply:?}"))
        };
        Ok(Self {
            access: token("access_token")?,
            refresh: token("refresh_token")?,
        })
    }
}

/// Result of an operation as its client or operator knows it.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// A response, whatever its status.
    Response(Reply),
    /// A command that has ended by itself, with its exit code, standard output and standard error.
    Exit(i32, String, String),
    /// Neither: the connection was closed, or the process was killed.
    Nothing,
}

/// An operation that is interrupted.
#[derive(Debug, Clone)]
pub enum Action {
    Request(HttpRequest),
    /// Arguments of auth-api, and a line of standard input.
    Command(Vec<String>, String),
}

/// Two replicas on the same stores, of which one can be interrupted.
#[derive(Debug)]
pub struct Bench {
    pub replicas: Replicas,
    /// `None` for the embedded store.
    proxies: Option<StoreProxies>,
}

/// A replica of a [`Bench`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instance {
    Witness,
    Interrupted,
}

impl Bench {
    pub const INSTANCES: [Instance; 2] = [Instance::Witness, Instance::Interrupted];

    /// Starts both replicas on a new store, with further settings.
    ///
    /// # Errors
    /// Returns an error if a program does not start.
    pub async fn start(store: Store, further: Settings) -> Result<Self> {
        // The log has the audit events alone.
        let mut settings = settings([
            ("LOG_LEVEL", "ERROR".to_owned()),
            // A retry is within it, however slow the machine is.
            ("REFRESH_TOKEN_GRACE", "300".to_owned()),
        ]);
        settings.extend(further);
        let mut replicas = Replicas::start_with(store, 1, settings).await?;
        let proxies = match (&replicas.database, &replicas.redis) {
            (Some(database), Some(redis)) => {
                Some(StoreProxies::start(database.server, redis.address).await?)
            }
            _ => None,
        };
        if let Some(proxies) = &proxies {
            replicas.set("DB_HOST", &proxies.postgres.ip().to_string());
            replicas.set("DB_PORT", &proxies.postgres.port().to_string());
            for (name, value) in redis_settings(proxies.redis) {
                replicas.set(&name, &value);
            }
        }
        let mut bench = Self { replicas, proxies };
        bench.start_interrupted().await?;
        Ok(bench)
    }

    async fn start_interrupted(&mut self) -> Result<()> {
        self.replicas.start_another()?;
        self.replicas.wait_until_ready(INTERRUPTED).await
    }

    fn address(&self, instance: Instance) -> SocketAddr {
        let index = match instance {
            Instance::Witness => WITNESS,
            Instance::Interrupted => INTERRUPTED,
        };
        self.replicas.instances[index].address
    }

    /// Runs an action with a fault at its request to a store, or its write, with this number. Returns its outcome and
    /// the request, or `None` in place of the request if it made fewer.
    ///
    /// # Errors
    /// Returns an error if the harness fails, or the action does not end in time.
    pub async fn run(
        &mut self,
        action: &Action,
        fault: Fault,
        number: usize,
    ) -> Result<(Outcome, Option<String>)> {
        let result = tokio::time::timeout(wait::TIMEOUT, async {
            if self.proxies.is_some() {
                self.run_to_breakpoint(action, fault, number).await
            } else {
                self.run_to_full_disk(action, fault, number).await
            }
        });
        result
            .await
            .with_context(|| format!("{action:?} did not end"))?
    }

    async fn run_to_breakpoint(
        &mut self,
        action: &Action,
        fault: Fault,
        number: usize,
    ) -> Result<(Outcome, Option<String>)> {
        let breakpoint = Breakpoint {
            request: number,
            place: fault.place(),
        };
        let reached = self.proxies()?.set(breakpoint).await;
        let result = match action {
            Action::Request(request) => self.run_request(request, fault, reached).await,
            Action::Command(arguments, input) => {
                let command = self.replicas.command("auth-api");
                run_command(command, arguments, input, fault, reached).await
            }
        };
        self.proxies()?.clear().await;
        self.proxies()?.reconnect();
        result
    }

    fn proxies(&self) -> Result<&StoreProxies> {
        self.proxies.as_ref().context("the store has proxies")
    }

    async fn run_to_full_disk(
        &mut self,
        action: &Action,
        fault: Fault,
        number: usize,
    ) -> Result<(Outcome, Option<String>)> {
        let file = self.replicas.sqlite_file().with_extension("db-wal");
        let length = || fs::metadata(&file).map_or(0, |metadata| metadata.len());
        let frames = u64::try_from(number.saturating_sub(1))?;
        let limit = frames.checked_mul(WAL_FRAME).map(|written| {
            let begun = if length() == 0 { WAL_HEADER } else { 0 };
            length() + begun + written + WAL_FRAME / 2
        });
        let outcome = match action {
            Action::Request(request) => {
                let process = &self.replicas.instances[INTERRUPTED].process;
                process.limit_file_size(limit)?;
                let mut stream = TcpStream::connect(self.address(Instance::Interrupted)).await?;
                stream.write_all(&request.to_bytes()).await?;
                receive(&mut stream).await.into()
            }
            Action::Command(arguments, input) => {
                let command = self.replicas.command_with_max_file_size("auth-api", limit);
                let (_never, reached) = oneshot::channel();
                run_command(command, arguments, input, fault, reached)
                    .await?
                    .0
            }
        };
        let is_reached = limit.is_some_and(|limit| length() >= limit);
        if fault == Fault::KilledAtWrite && is_reached {
            drop(self.replicas.instances.remove(INTERRUPTED));
            self.start_interrupted().await?;
        } else {
            let process = &self.replicas.instances[INTERRUPTED].process;
            process.limit_file_size(None)?;
        }
        let place = is_reached.then(|| format!("frame {number} of the write-ahead log"));
        Ok((outcome, place))
    }

    async fn run_request(
        &mut self,
        request: &HttpRequest,
        fault: Fault,
        reached: oneshot::Receiver<Reached>,
    ) -> Result<(Outcome, Option<String>)> {
        let mut stream = TcpStream::connect(self.address(Instance::Interrupted)).await?;
        stream.write_all(&request.to_bytes()).await?;
        let reached = tokio::select! {
            biased;
            Ok(reached) = reached => reached,
            reply = receive(&mut stream) => return Ok((reply.into(), None)),
        };
        let place = describe(&reached);
        if fault.kills() {
            // Dropping it kills it and waits for its end.
            drop(self.replicas.instances.remove(INTERRUPTED));
        }
        if fault.disconnects_client() {
            // The server closes the connection once it has seen that the client disconnected.
            stream.shutdown().await?;
            stream.read_to_end(&mut Vec::new()).await?;
        }
        reached.proceed(fault.continuation());
        let outcome = if fault.kills() || fault.disconnects_client() {
            Outcome::Nothing
        } else {
            receive(&mut stream).await.into()
        };
        self.proxies()?.reconnect();
        if fault.disconnects_client() {
            self.stop_interrupted().await?;
        }
        if fault.kills() || fault.disconnects_client() {
            self.start_interrupted().await?;
        }
        Ok((outcome, Some(place)))
    }

    /// Sends a request to the replica that can be interrupted, and `other` to the witness as soon as the request of the
    /// first one with this number has reached a store, which it then waits for. Returns both responses and the request
    /// to the store, or `None` in place of it if there were fewer; `other` is not sent then. A response is `None` if
    /// the connection was closed without one.
    ///
    /// # Errors
    /// Returns an error if the harness fails, or a response does not arrive in time.
    pub async fn overtake(
        &self,
        request: &HttpRequest,
        number: usize,
        other: &HttpRequest,
    ) -> Result<(Option<Reply>, Option<(String, Option<Reply>)>)> {
        let breakpoint = Breakpoint {
            request: number,
            place: Place::BeforeRequest,
        };
        let mut reached = self.proxies()?.set(breakpoint).await;
        let mut stream = TcpStream::connect(self.address(Instance::Interrupted)).await?;
        stream.write_all(&request.to_bytes()).await?;
        let result = tokio::time::timeout(wait::TIMEOUT, async {
            let reached = tokio::select! {
                biased;
                Ok(reached) = &mut reached => reached,
                reply = receive(&mut stream) => return anyhow::Ok((reply, None)),
            };
            let place = describe(&reached);
            // Once: it may have taken effect although a store was too slow for its response.
            let mut second = TcpStream::connect(self.address(Instance::Witness)).await?;
            second.write_all(&other.to_bytes()).await?;
            let other = receive(&mut second).await;
            reached.proceed(Continuation::Forward);
            Ok((receive(&mut stream).await, Some((place, other))))
        });
        let result = result.await.context("no response in time")?;
        self.proxies()?.clear().await;
        result
    }

    /// Ends the replica, which completes what it has begun before.
    async fn stop_interrupted(&mut self) -> Result<()> {
        self.replicas.instances[INTERRUPTED]
            .process
            .signal(Signal::TERM)?;
        while self.replicas.instances[INTERRUPTED].process.is_running() {
            tokio::time::sleep(wait::POLL_INTERVAL).await;
        }
        self.replicas.instances.remove(INTERRUPTED);
        Ok(())
    }

    /// Sends a request to a replica, again as long as it responds with 503: its connections may have broken.
    ///
    /// # Errors
    /// Returns an error if no other response arrives in time.
    pub async fn send(&self, instance: Instance, request: &HttpRequest) -> Result<Reply> {
        let attempts = async {
            loop {
                let mut stream = TcpStream::connect(self.address(instance)).await?;
                stream.write_all(&request.to_bytes()).await?;
                match receive(&mut stream).await {
                    Some(reply) if reply.status != 503 => return anyhow::Ok(reply),
                    _ => tokio::time::sleep(wait::POLL_INTERVAL).await,
                }
            }
        };
        let reply = tokio::time::timeout(wait::TIMEOUT, attempts).await;
        reply.with_context(|| format!("no response but 503 to {request:?}"))?
    }

    /// Runs a command of an operator without a fault, again as long as a store is too slow for it. Returns whether it
    /// succeeded, and its output.
    ///
    /// # Errors
    /// Returns an error if it cannot be started, or the stores stay too slow.
    pub async fn command(&mut self, arguments: &[&str], input: &str) -> Result<(bool, String)> {
        let arguments: Vec<_> = arguments.iter().copied().map(str::to_owned).collect();
        let action = Action::Command(arguments, input.to_owned());
        let start = Instant::now();
        loop {
            let (outcome, _) = self.run(&action, Fault::RequestLost, usize::MAX).await?;
            match outcome {
                Outcome::Exit(1, _, stderr)
                    if stderr.contains(UNAVAILABLE) && start.elapsed() < wait::TIMEOUT => {}
                Outcome::Exit(code, stdout, stderr) => return Ok((code == 0, stdout + &stderr)),
                other => bail!("{other:?}"),
            }
        }
    }

    /// Returns the log of the replica that is interrupted, also of earlier processes.
    #[must_use]
    pub fn log(&self) -> String {
        self.replicas.instances[INTERRUPTED].process.log()
    }
}

/// Runs auth-api with arguments and a line of standard input.
async fn run_command(
    command: std::process::Command,
    arguments: &[String],
    input: &str,
    fault: Fault,
    reached: oneshot::Receiver<Reached>,
) -> Result<(Outcome, Option<String>)> {
    let mut command = Command::from(command);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let pid = child.id().context("the command runs")?;
    let mut stdin = child.stdin.take().context("standard input is piped")?;
    // A command that reads no input may already have exited.
    let _ = stdin.write_all(format!("{input}\n").as_bytes()).await;
    drop(stdin);
    let output = child.wait_with_output();
    tokio::pin!(output);
    let mut place = None;
    let output = tokio::select! {
        biased;
        Ok(reached) = reached => {
            place = Some(describe(&reached));
            if fault.kills() {
                let pid = Pid::from_raw(i32::try_from(pid)?).context("a process id")?;
                kill_process(pid, Signal::KILL)?;
                let output = output.await?;
                reached.proceed(fault.continuation());
                output
            } else {
                reached.proceed(fault.continuation());
                output.await?
            }
        }
        output = &mut output => output?,
    };
    let outcome = output.status.code().map_or(Outcome::Nothing, |code| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Outcome::Exit(code, text(&output.stdout), text(&output.stderr))
    });
    Ok((outcome, place))
}

impl From<Option<Reply>> for Outcome {
    fn from(reply: Option<Reply>) -> Self {
        reply.map_or(Self::Nothing, Self::Response)
    }
}

fn describe(reached: &Reached) -> String {
    let mut text = reached
        .request
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    text.truncate(text.floor_char_boundary(70));
    format!("{:?}: {text}", reached.store)
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Response(reply) => write!(formatter, "{} {}", reply.status, reply.body),
            Self::Exit(code, stdout, stderr) => write!(formatter, "exit {code}: {stdout} {stderr}"),
            Self::Nothing => formatter.write_str("nothing"),
        }
    }
}

/// Reads until the server closes the connection. Returns `None` unless that was a complete response.
async fn receive(stream: &mut TcpStream) -> Option<Reply> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then_some(value)
    });
    let is_complete = length.is_none_or(|length| length.parse() == Ok(body.len()));
    is_complete.then(|| Reply {
        status,
        body: body.to_owned(),
    })
}
