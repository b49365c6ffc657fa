//! Scripted client: sends the requests of its plan on one connection, and reads the responses.

use std::future::pending;
use std::io;
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::timeout;

use super::history::SharedHistory;
use super::pipe::PeerEnd;
use super::response_parser::{Announcement, ParsedResponse, ResponseParser};
use super::script::{
    ClientPlan, ClientReading, Expectation, RequestPlan, Script, SendOrder, StopKind,
};
use super::sending::{pause, send};

/// Time after which a client sends a body without a 100 response.
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);
/// Size of reads between two pauses of a slow reader.
const SLOW_READ_SIZE: usize = 1000;
const READ_SIZE: usize = 16 * 1024;

/// Progress of a connection.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// Requests of which a part was sent.
    begun: usize,
    /// Final responses that are complete.
    responses: usize,
    /// Requests up to which a 100 response has arrived.
    continued: usize,
}

/// Client with one connection.
pub(super) struct Client<'c> {
    pub(super) index: usize,
    pub(super) plan: &'c ClientPlan,
    pub(super) history: &'c SharedHistory,
}

impl Client<'_> {
    /// Follows the plan until the connection is closed by either side.
    pub(super) async fn run(&self, connection: PeerEnd) {
        let PeerEnd { stream, reset } = connection;
        let (reader, writer) = tokio::io::split(stream);
        let progress = watch::Sender::default();
        let mut reading = std::pin::pin!(self.read(reader, &progress));
        let mut writer = writer;
        let stop = tokio::select! {
            biased;
            () = &mut reading => return,
            stop = self.write(&mut writer, &progress) => stop,
        };
        match stop {
            Ok(StopKind::Close) => {}
            Ok(StopKind::Reset) => reset.announce(),
            Ok(StopKind::HalfClose) => {
                let _ = writer.shutdown().await;
                reading.await;
            }
            // The gateway may have sent a response before it closed the connection.
            Ok(StopKind::Stall) | Err(_) => reading.await,
        }
    }

    /// Sends the requests. Returns how the client stops.
    async fn write(
        &self,
        writer: &mut WriteHalf<DuplexStream>,
        progress: &watch::Sender<Progress>,
    ) -> io::Result<StopKind> {
        let mut observed = progress.subscribe();
        for (index, request) in self.plan.requests.iter().enumerate() {
            if self.plan.order == SendOrder::AfterResponse {
                wait_for(&mut observed, |progress| progress.responses >= index).await;
            }
            if index > 0 {
                pause(self.plan.rest, self.history).await;
            }
            let stop = self.plan.stop.filter(|stop| stop.request == index);
            let at = stop.map_or(usize::MAX, |stop| stop.at);
            if at > 0 {
                progress.send_modify(|progress| progress.begun = index + 1);
            }
            let sent = self
                .send_request(index, request, at, writer, &mut observed)
                .await?;
            if let Some(stop) = stop {
                return Ok(stop.how);
            }
            if sent == Sent::HeadersOnly {
                return Ok(StopKind::Stall);
            }
        }
        let count = self.plan.requests.len();
        wait_for(&mut observed, |progress| progress.responses >= count).await;
        Ok(StopKind::Close)
    }

    /// Sends the first `at` bytes of a request.
    async fn send_request(
        &self,
        index: usize,
        request: &RequestPlan,
        at: usize,
        writer: &mut WriteHalf<DuplexStream>,
        observed: &mut watch::Receiver<Progress>,
    ) -> io::Result<Sent> {
        let (history, pace) = (self.history, self.plan.pace);
        let number = Script::number(self.index, index);
        let wire = request.wire(number);
        let bytes = &wire.bytes[..at.min(wire.bytes.len())];
        let (headers, body) = bytes.split_at(wire.headers.min(bytes.len()));
        send(writer, headers, pace, history, |_| {}).await?;
        if request.expectation == Expectation::Continue && !body.is_empty() {
            history.lock().pauses += CONTINUE_TIMEOUT;
            let is_over =
                |progress: &Progress| progress.continued > index || progress.responses > index;
            let _ = timeout(CONTINUE_TIMEOUT, wait_for(observed, is_over)).await;
            if observed.borrow().responses > index {
                return Ok(Sent::HeadersOnly);
            }
        }
        let mut sent = wire.headers;
        let on_sent = |bytes| {
            sent += bytes;
            let decoded = wire.decoded(sent, request.body_size()) - wire.headers;
            history.lock().send_body(number, decoded);
        };
        send(writer, body, pace, history, on_sent).await?;
        Ok(Sent::Whole)
    }

    /// Reads until the gateway closes the connection.
    async fn read(&self, mut reader: ReadHalf<DuplexStream>, progress: &watch::Sender<Progress>) {
        let mut parser = ResponseParser::new();
        let (mut buffer, mut total) = (vec![0; READ_SIZE], 0);
        loop {
            let max = match self.plan.reading {
                ClientReading::AtOnce => READ_SIZE,
                ClientReading::Slow(time) => {
                    pause(time, self.history).await;
                    SLOW_READ_SIZE
                }
                ClientReading::StopsAfter(stop) if total >= stop => pending().await,
                ClientReading::StopsAfter(stop) => READ_SIZE.min(stop - total),
            };
            let Ok(read @ 1..) = reader.read(&mut buffer[..max]).await else {
                break;
            };
            total += read;
            self.history.lock().receive(self.index, read);
            parser.input.extend_from_slice(&buffer[..read]);
            self.parse(&mut parser, progress);
        }
        let index = progress.borrow().responses;
        if let Some(truncated) = parser.finish() {
            let number = Script::number(self.index, index);
            self.history.lock().receive_response(number, &truncated);
        }
    }

    /// At most one final response follows each request, and nothing follows one that announces the close.
    fn parse(&self, parser: &mut ResponseParser, progress: &watch::Sender<Progress>) {
        loop {
            let Progress {
                begun, responses, ..
            } = *progress.borrow();
            let number = Script::number(self.index, responses);
            if parser.is_between_messages() {
                let is_expected =
                    responses < begun && parser.announcement == Announcement::Persistent;
                let violation = || format!("bytes before the response to request {number}");
                let is_empty = parser.input.is_empty();
                self.history
                    .lock()
                    .require(is_empty || is_expected, violation);
                if is_empty || !is_expected {
                    return parser.input.clear();
                }
            }
            match parser.parse(self.plan.requests[responses].method) {
                None => return,
                Some(ParsedResponse::Interim(status)) => {
                    let mut history = self.history.lock();
                    history.receive_interim(number, status.as_u16());
                    drop(history);
                    if status == StatusCode::CONTINUE {
                        progress.send_modify(|progress| progress.continued = responses + 1);
                    }
                }
                Some(ParsedResponse::Final(response)) => {
                    self.history.lock().receive_response(number, &response);
                    progress.send_modify(|progress| progress.responses += 1);
                }
                Some(ParsedResponse::Malformed(text)) => {
                    let violation = || format!("request {number} got {text}");
                    self.history.lock().require(false, violation);
                    return parser.input.clear();
                }
            }
        }
    }
}

/// Part of a request that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Whole,
    /// The response came before the body.
    HeadersOnly,
}

async fn wait_for(
    observed: &mut watch::Receiver<Progress>,
    condition: impl FnMut(&Progress) -> bool,
) {
    let _ = observed.wait_for(condition).await;
}
