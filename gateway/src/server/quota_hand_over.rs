//! Connection by which the running gateway hands its quota counters over to the new one at an upgrade.
//!
//! It is a Unix socket beside that of the [upgrade](super::upgrade), with the same permissions. The new gateway waits for the
//! counters when it has the listening sockets, before it uses them: the running one serves meanwhile. Without counters it
//! begins anew, after [`CONNECT_TIMEOUT`] and [`transfer::TRANSFER_TIMEOUT`] at most.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::features::rate_limit::Quota;
use crate::features::rate_limit::hand_over::remote::{
    DecisionReply, DecisionRequest, MAX_PENDING, PendingDecision, REPLY_BYTES, REQUEST_BYTES,
    RemoteCounters, decode_reply, encode_reply,
};
use crate::features::rate_limit::hand_over::transfer::{self, HandOverError};
use crate::proxy::state::GatewayState;
use crate::server::private_socket::{self, PrivateSocket};

/// Longest time to wait for the connection of the running gateway. It connects while it sends its sockets.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time for which the other process may send or receive nothing.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(1);
const BUFFER_BYTES: usize = 64 * 1024;

/// Socket at which the new gateway waits for the counters.
#[derive(Debug)]
pub(super) struct CounterSocket(PrivateSocket);

impl CounterSocket {
    /// Binds the socket. Returns `None` if that is not possible, which the log says.
    pub(super) fn bind(upgrade_socket: &Path) -> Option<Self> {
        let path = path(upgrade_socket);
        match PrivateSocket::bind(path.clone()) {
            Ok(socket) => Some(Self(socket)),
            Err(error) => {
                let socket = path.display();
                tracing::warn!(%socket, %error, "quotas begin anew: no socket for the counters");
                None
            }
        }
    }

    /// Takes the counters of the running gateway over, and decides about its further requests until it ends.
    pub(super) fn receive(self, gateway: &Arc<GatewayState>) {
        let start = Instant::now();
        let stream = private_socket::accept(&self.0, CONNECT_TIMEOUT);
        // The next upgrade binds a new one.
        drop(self);
        let received = match stream {
            Ok(Some(stream)) => receive(stream, gateway),
            Ok(None) => {
                tracing::warn!("quotas begin anew: the running gateway hands no counters over");
                return;
            }
            Err(error) => Err(error.into()),
        };
        let elapsed_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        match received {
            Ok((input, buckets)) => {
                tracing::info!(buckets, elapsed_ms, "quota counters taken over");
                let gateway = Arc::clone(gateway);
                thread::spawn(move || {
                    let ended = decide_until_end(input, &gateway);
                    tracing::debug!(error = ?ended.err(), "the old gateway has ended");
                });
            }
            Err(error) => {
                tracing::warn!(%error, elapsed_ms, "quotas begin anew: counters not taken over");
            }
        }
    }
}

fn path(upgrade_socket: &Path) -> PathBuf {
    private_socket::beside(upgrade_socket, ".quotas")
}

fn receive(
    stream: UnixStream,
    gateway: &GatewayState,
) -> Result<(BufReader<UnixStream>, usize), HandOverError> {
    stream.set_read_timeout(Some(PROGRESS_TIMEOUT))?;
    stream.set_write_timeout(Some(PROGRESS_TIMEOUT))?;
    let mut input = BufReader::with_capacity(BUFFER_BYTES, stream);
    let active = gateway.snapshot();
    let quotas: Vec<&Quota> = active.routes.quotas().collect();
    let buckets = transfer::receive(&gateway.quotas, &quotas, &mut input)?;
    input.get_ref().set_read_timeout(None)?;
    Ok((input, buckets))
}

/// Decides about the requests that the old gateway asks about, until it closes the connection.
fn decide_until_end(mut input: BufReader<UnixStream>, gateway: &GatewayState) -> io::Result<()> {
    let mut replies = Vec::new();
    loop {
        replies.clear();
        loop {
            let mut request = [0; REQUEST_BYTES];
            input.read_exact(&mut request)?;
            let request = DecisionRequest::decode(request);
            let active = gateway.current();
            let reply = request.decide(&gateway.quotas, active.routes.quotas());
            encode_reply(reply, &mut replies);
            if input.buffer().len() < REQUEST_BYTES {
                break;
            }
        }
        input.get_mut().write_all(&replies)?;
    }
}

/// Hands the counters of this process over to the new gateway, and from then on asks it about each request, until this
/// process ends.
pub(super) fn hand_over(upgrade_socket: &Path, gateway: &GatewayState) {
    let start = Instant::now();
    let connection = private_socket::connect(&path(upgrade_socket)).and_then(|stream| {
        stream.set_write_timeout(Some(PROGRESS_TIMEOUT))?;
        Ok((stream.try_clone()?, stream))
    });
    let (input, output) = match connection {
        Ok(connection) => connection,
        Err(error) => {
            tracing::warn!(%error, "quota counters not handed over: the new gateway does not take them");
            return;
        }
    };
    let mut output = BufWriter::with_capacity(BUFFER_BYTES, output);
    let (queue, requests) = mpsc::sync_channel(MAX_PENDING);
    let active = gateway.snapshot();
    let quotas: Vec<&Quota> = active.routes.quotas().collect();
    let sent = transfer::send(&gateway.quotas, &quotas, &mut output, || {
        let counters = RemoteCounters { queue };
        gateway.remote_counters.store(Some(Arc::new(counters)));
    });
    let elapsed_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    let ended = sent.and_then(|buckets| {
        tracing::info!(buckets, elapsed_ms, "quota counters handed over");
        ask_until_end(input, output, &requests)
    });
    gateway.remote_counters.store(None);
    if let Err(error) = ended {
        tracing::warn!(%error, "the new gateway does not count any more: counting alone");
    }
}

/// Sends requests for decisions, and passes the replies on.
fn ask_until_end(
    mut input: UnixStream,
    mut output: impl Write,
    requests: &Receiver<PendingDecision>,
) -> io::Result<()> {
    let (waiting, replies) = mpsc::channel::<oneshot::Sender<DecisionReply>>();
    thread::spawn(move || {
        for waiting in replies {
            let mut reply = [0; REPLY_BYTES];
            if input.read_exact(&mut reply).is_err() {
                return;
            }
            // The request may have been cancelled.
            let _ = waiting.send(decode_reply(reply));
        }
    });
    let mut buffer = Vec::new();
    while let Ok(first) = requests.recv() {
        buffer.clear();
        let mut next = Some(first);
        while let Some(PendingDecision { request, reply }) = next {
            request.encode(&mut buffer);
            if waiting.send(reply).is_err() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            next = (buffer.len() < BUFFER_BYTES)
                .then(|| requests.try_recv().ok())
                .flatten();
        }
        output.write_all(&buffer)?;
        output.flush()?;
    }
    Ok(())
}
