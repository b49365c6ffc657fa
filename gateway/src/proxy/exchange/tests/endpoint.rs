//! Scripted endpoint, and the connector that connects the gateway to it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use futures::FutureExt;
use parking_lot::Mutex;
use pingora::protocols::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::Notify;

use super::arrival::ConnectionUse;
use super::history::SharedHistory;
use super::pipe::{PeerEnd, Reset, pipe};
use super::script::{
    AfterResponse, ConnectPlan, CutKind, Expectation, Pace, ResponseBegin, ResponsePlan, Script,
    request_body,
};
use super::sending::{PACED_BYTES, pause, send};
use crate::http::h1::framing::{BodyDecoder, BodyEvent, ChunkSyntax};
use crate::http::message::Framing;
use crate::upstream::{ConnectError, StreamConnector};

/// Response that another client would get if the connection were used again.
const SURPLUS: &[u8] = b"HTTP/1.1 200 OK\r\nx-smuggled: 1\r\ncontent-length: 0\r\n\r\n";

/// Connector whose connections lead to an endpoint that follows a script.
pub(super) struct ScriptedConnector {
    connects: Mutex<VecDeque<ConnectPlan>>,
    responses: Arc<Mutex<VecDeque<ResponsePlan>>>,
    history: SharedHistory,
}

impl ScriptedConnector {
    pub(super) fn new(script: &Script, history: &SharedHistory) -> Self {
        let responses = VecDeque::from(script.responses.clone());
        Self {
            connects: Mutex::new(VecDeque::from(script.connects.clone())),
            responses: Arc::new(Mutex::new(responses)),
            history: Arc::clone(history),
        }
    }
}

#[async_trait]
impl StreamConnector for ScriptedConnector {
    async fn connect(&self, _: SocketAddr, timeout: Duration) -> Result<Stream, ConnectError> {
        let plan = self.connects.lock().pop_front();
        match plan.unwrap_or(ConnectPlan::Accepted) {
            ConnectPlan::Accepted => {}
            ConnectPlan::Refused => return Err(ConnectError::Failed),
            ConnectPlan::TimesOut => {
                tokio::time::sleep(timeout).await;
                return Err(ConnectError::TimedOut);
            }
        }
        self.history.lock().connections += 1;
        let (gateway, PeerEnd { stream, reset }) = pipe();
        let (reader, writer) = tokio::io::split(stream);
        let connection = EndpointConnection {
            input: Input {
                reader,
                buffer: BytesMut::new(),
            },
            writer,
            responses: Arc::clone(&self.responses),
            history: Arc::clone(&self.history),
        };
        tokio::spawn(connection.serve(reset));
        Ok(Box::new(gateway))
    }
}

/// End of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionEnd {
    ClosedByGateway,
    Close,
    Reset,
}

/// Connection as the endpoint sees it.
struct EndpointConnection {
    input: Input,
    writer: WriteHalf<DuplexStream>,
    responses: Arc<Mutex<VecDeque<ResponsePlan>>>,
    history: SharedHistory,
}

/// Bytes from the gateway.
struct Input {
    reader: ReadHalf<DuplexStream>,
    buffer: BytesMut,
}

/// Request whose headers have arrived.
struct ReceivedRequest {
    number: u32,
    method: String,
    framing: Framing,
    expectation: Expectation,
    /// Index among the arrivals of the request.
    arrival: usize,
}

impl EndpointConnection {
    async fn serve(mut self, reset: Reset) {
        let mut earlier = ConnectionUse::First;
        loop {
            match self.serve_request(earlier).await {
                Ok(next) => earlier = next,
                Err(ConnectionEnd::Reset) => return reset.announce(),
                Err(ConnectionEnd::Close | ConnectionEnd::ClosedByGateway) => return,
            }
        }
    }

    /// Serves one request. Returns how the connection is left.
    async fn serve_request(
        &mut self,
        earlier: ConnectionUse,
    ) -> Result<ConnectionUse, ConnectionEnd> {
        let headers = self.input.read_headers().await?;
        let request = self.receive(&headers, earlier)?;
        let plan = self.responses.lock().pop_front().unwrap_or_default();
        let (history, number) = (&self.history, request.number);
        let (received, responded) = (Notify::new(), Notify::new());
        let receive = async {
            if plan.begin == ResponseBegin::BeforeBody {
                responded.notified().await;
            }
            self.input.read_body(&request, history).await?;
            received.notify_one();
            Ok(())
        };
        let respond = async {
            match plan.begin {
                ResponseBegin::AfterRequest | ResponseBegin::Never => received.notified().await,
                ResponseBegin::AfterHeaders | ResponseBegin::BeforeBody => {}
            }
            if plan.begin == ResponseBegin::Never {
                return Ok(ConnectionUse::Unclean("a request without a response"));
            }
            let left = respond(&mut self.writer, &request, &plan, history).await?;
            responded.notify_one();
            Ok(left)
        };
        let result = tokio::try_join!(receive, respond);
        match result {
            Err(ConnectionEnd::Close) => history.lock().close(number, request.arrival),
            Err(ConnectionEnd::Reset) => history.lock().reset(number, request.arrival),
            Ok(_) | Err(ConnectionEnd::ClosedByGateway) => {}
        }
        match result? {
            ((), ConnectionUse::Clean) => self.finish(&plan).await,
            ((), left) => Ok(left),
        }
    }

    fn receive(
        &self,
        headers: &[u8],
        earlier: ConnectionUse,
    ) -> Result<ReceivedRequest, ConnectionEnd> {
        let mut space = [httparse::EMPTY_HEADER; 32];
        let mut parsed = httparse::Request::new(&mut space);
        let status = parsed.parse(headers);
        let value = |name| {
            let header = parsed.headers.iter().find(|header| header.name == name)?;
            str::from_utf8(header.value).ok()
        };
        let length = value("content-length").map(|value| value.parse().expect("it is a number"));
        let framing = match (length, value("transfer-encoding")) {
            (Some(length), None) => Framing::Length(length),
            (None, Some("chunked")) => Framing::Chunked,
            (None, None) => Framing::Empty,
            other => panic!("the framing is ambiguous: {other:?}"),
        };
        let expectation = match value("expect") {
            Some(_) => Expectation::Continue,
            None => Expectation::None,
        };
        let number = parsed.path.and_then(Script::number_in);
        let mut history = self.history.lock();
        let (Ok(httparse::Status::Complete(_)), Some(number)) = (status, number) else {
            let headers = headers.escape_ascii();
            history.require(false, || format!("the endpoint received {headers}"));
            return Err(ConnectionEnd::Close);
        };
        let arrival = history.arrive(number, earlier);
        Ok(ReceivedRequest {
            number,
            method: parsed.method.unwrap_or_default().to_owned(),
            framing,
            expectation,
            arrival: arrival.ok_or(ConnectionEnd::Close)?,
        })
    }

    /// Does what follows a complete response.
    async fn finish(&mut self, plan: &ResponsePlan) -> Result<ConnectionUse, ConnectionEnd> {
        match plan.after {
            AfterResponse::Keep | AfterResponse::SurplusAtOnce => Ok(ConnectionUse::Clean),
            AfterResponse::AnnounceClose => {
                Ok(ConnectionUse::Unclean("the announcement of its close"))
            }
            AfterResponse::Close(delay) => {
                if self.is_idle_for(delay).await? {
                    return Err(ConnectionEnd::Close);
                }
                Ok(ConnectionUse::Clean)
            }
            AfterResponse::Surplus(delay) => {
                if self.is_idle_for(delay).await? {
                    let sent = self.writer.write_all(SURPLUS).now_or_never();
                    if sent.is_some() {
                        return Ok(ConnectionUse::Unclean("surplus bytes"));
                    }
                }
                Ok(ConnectionUse::Clean)
            }
        }
    }

    /// Returns whether nothing arrives for some time.
    async fn is_idle_for(&mut self, time: Duration) -> Result<bool, ConnectionEnd> {
        if !self.input.buffer.is_empty() {
            return Ok(false);
        }
        tokio::select! {
            biased;
            read = self.input.read() => read.map(|()| false),
            () = pause(time, &self.history) => Ok(true),
        }
    }
}

impl Input {
    async fn read(&mut self) -> Result<(), ConnectionEnd> {
        match self.reader.read_buf(&mut self.buffer).await {
            Ok(1..) => Ok(()),
            _ => Err(ConnectionEnd::ClosedByGateway),
        }
    }

    async fn read_headers(&mut self) -> Result<BytesMut, ConnectionEnd> {
        loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                return Ok(self.buffer.split_to(end + 4));
            }
            self.read().await?;
        }
    }

    async fn read_body(
        &mut self,
        request: &ReceivedRequest,
        history: &SharedHistory,
    ) -> Result<(), ConnectionEnd> {
        let (mut decoder, mut body) = (BodyDecoder::from(request.framing), Vec::new());
        loop {
            match decoder.decode(&mut self.buffer, ChunkSyntax::Strict) {
                Ok(Some(BodyEvent::Data(data))) => {
                    body.extend_from_slice(&data);
                    history.lock().receive_body(request.number, body.len());
                }
                Ok(Some(BodyEvent::End)) => break,
                Ok(None) => self.read().await?,
                Err(_) => {
                    let violation = || "the endpoint received malformed chunks".to_owned();
                    history.lock().require(false, violation);
                    return Err(ConnectionEnd::Close);
                }
            }
        }
        let is_same = body == request_body(request.number, body.len());
        let mut history = history.lock();
        history.require(is_same, || {
            format!("the endpoint received another body of {}", request.number)
        });
        history.end_body(request.number, body.len());
        Ok(())
    }
}

/// Sends a response, or a part of it.
async fn respond(
    writer: &mut WriteHalf<DuplexStream>,
    request: &ReceivedRequest,
    plan: &ResponsePlan,
    history: &SharedHistory,
) -> Result<ConnectionUse, ConnectionEnd> {
    let (number, arrival) = (request.number, request.arrival);
    let received_before = history.lock().received_of(number);
    pause(plan.delay, history).await;
    let wire = plan.wire(number, &request.method);
    let ends_with_close = plan.ends_with_close(&request.method);
    let length = wire.bytes.len();
    let end = plan.cut.map_or(length, |cut| cut.at.min(length - 1));
    let is_closed = plan.cut.is_none_or(|cut| cut.how == CutKind::Close);
    let mut complete_body = if end == length {
        Some(plan.body_size(&request.method))
    } else if ends_with_close && is_closed {
        end.checked_sub(wire.headers)
    } else {
        None
    };
    let mut bytes = wire.bytes[..end].to_vec();
    // Later, the bytes could arrive after another request.
    let is_surplus_sent = plan.after == AfterResponse::SurplusAtOnce
        && plan.cut.is_none()
        && !ends_with_close
        && length + SURPLUS.len() <= PACED_BYTES;
    let mut pace = plan.pace;
    if is_surplus_sent {
        bytes.extend_from_slice(SURPLUS);
        pace = Pace::AT_ONCE;
    }
    let mut sent = 0;
    let on_sent = |bytes| {
        sent += bytes;
        let mut history = history.lock();
        let decoded = wire.decoded(sent.min(end), plan.size);
        history.send_response(number, arrival, decoded, received_before);
        if let Some(body) = complete_body.take_if(|_| sent >= end) {
            history.complete_response(number, arrival, plan.status, body);
        }
    };
    history.lock().send_interim(number, &plan.interim);
    let sending = send(writer, &bytes, pace, history, on_sent);
    let sending = sending.await;
    sending.map_err(|_| ConnectionEnd::ClosedByGateway)?;
    match plan.cut {
        None if ends_with_close => Err(ConnectionEnd::Close),
        None if is_surplus_sent => Ok(ConnectionUse::Unclean("surplus bytes")),
        None if plan.announces_missing_body(&request.method) => Ok(ConnectionUse::Unclean(
            "headers that announce a missing body",
        )),
        None if request.expectation == Expectation::Continue && !plan.interim.contains(&100) => {
            Ok(ConnectionUse::Unclean("a rejected expectation"))
        }
        None => Ok(ConnectionUse::Clean),
        Some(cut) => match cut.how {
            CutKind::Close => Err(ConnectionEnd::Close),
            CutKind::Reset => Err(ConnectionEnd::Reset),
            CutKind::Stall => Ok(ConnectionUse::Unclean("a part of a response")),
        },
    }
}
