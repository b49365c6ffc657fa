//! hyper as a second implementation of HTTP/1.1, over a pipe and without a runtime.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::{Future, pending};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWrite, DuplexStream};

use gateway::fuzz::Header;

/// Polls after which no more headers can be expected.
const MAX_POLLS: usize = 16;

/// Request as hyper's server reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HyperRequest {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: Vec<u8>,
    pub(crate) is_http_1_0: bool,
    pub(crate) headers: Vec<Header>,
    /// Length that the headers announce, `None` for a chunked body.
    pub(crate) length: Option<u64>,
    /// Body, if it was received to its end.
    pub(crate) body: Option<Vec<u8>>,
}

/// Response as hyper's client reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HyperResponse {
    pub(crate) status: u16,
    pub(crate) headers: Vec<Header>,
    /// Body, if it was received to its end.
    pub(crate) body: Option<Vec<u8>>,
}

/// Returns the headers of the first request of a connection, `None` if hyper rejects them or waits for more.
pub(crate) fn read_request_headers(bytes: &[u8]) -> Option<HyperRequest> {
    read_first_request(bytes, MAX_POLLS)
}

/// Returns the first request of a connection with its body, `None` if hyper rejects its headers or waits for more.
pub(crate) fn read_request(bytes: &[u8]) -> Option<HyperRequest> {
    read_first_request(bytes, MAX_POLLS + bytes.len())
}

/// Returns the first request of a connection, `None` if hyper rejects it or waits for more of its headers.
fn read_first_request(bytes: &[u8], max_polls: usize) -> Option<HyperRequest> {
    let read = RefCell::new(None);
    let received = &read;
    let service = service_fn(move |request: Request<Incoming>| async move {
        let (parts, body) = request.into_parts();
        let target = parts.uri.path_and_query();
        received.replace(Some(HyperRequest {
            method: parts.method.to_string(),
            target: target.map_or_else(Vec::new, |target| target.as_str().into()),
            is_http_1_0: parts.version == Version::HTTP_10,
            headers: list(&parts.headers),
            length: body.size_hint().exact(),
            body: None,
        }));
        if let Ok(body) = body.collect().await
            && let Some(request) = &mut *received.borrow_mut()
        {
            request.body = Some(body.to_bytes().into());
        }
        pending::<()>().await;
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    });
    let (mut client, server) = tokio::io::duplex(bytes.len() + 1024);
    write(&mut client, bytes);
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service);
    let mut connection = pin!(connection);
    let is_complete = || {
        read.borrow()
            .as_ref()
            .is_some_and(|request: &HyperRequest| request.body.is_some())
    };
    // Each chunk takes a poll.
    for _ in 0..max_polls {
        if poll_once(&mut connection).is_ready() || is_complete() {
            break;
        }
    }
    drop(client);
    read.take()
}

/// Returns the response to a request of `method` without a body, `None` if hyper rejects it or waits for more of its
/// headers. The endpoint sends `bytes`, and then closes the connection if `closes` is true.
pub(crate) fn read_response(
    method: &str,
    upgrade: bool,
    bytes: &[u8],
    closes: bool,
) -> Option<HyperResponse> {
    let (mut endpoint, client) = tokio::io::duplex(bytes.len() + 1024);
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(client));
    let Poll::Ready(Ok((mut sender, connection))) = poll_some(&mut pin!(handshake)) else {
        return None;
    };
    let mut request = Request::builder()
        .method(method)
        .uri("/")
        .header("host", "a");
    if upgrade {
        request = request
            .header("connection", "upgrade")
            .header("upgrade", "websocket");
    }
    let request = request.body(Empty::<Bytes>::new()).ok()?;
    let read = RefCell::new(None);
    let exchange = async {
        let response = sender.send_request(request).await.ok()?;
        let (parts, body) = response.into_parts();
        read.replace(Some(HyperResponse {
            status: parts.status.as_u16(),
            headers: list(&parts.headers),
            body: None,
        }));
        let body = body.collect().await.ok()?.to_bytes().into();
        read.borrow_mut().as_mut()?.body = Some(body);
        Some(())
    };
    let (mut connection, mut exchange) = (pin!(connection), pin!(exchange));
    // The request is sent first, as the response to a request that was not sent is an error.
    let _ = poll_once(&mut exchange);
    let _ = poll_some(&mut connection);
    write(&mut endpoint, bytes);
    let endpoint = (!closes).then_some(endpoint);
    for _ in 0..MAX_POLLS + bytes.len() {
        let is_over = poll_once(&mut connection).is_ready();
        if poll_once(&mut exchange).is_ready() {
            break;
        }
        if is_over {
            let _ = poll_some(&mut exchange);
            break;
        }
    }
    drop(endpoint);
    read.take()
}

fn write(pipe: &mut DuplexStream, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let mut cx = Context::from_waker(Waker::noop());
    let written = Pin::new(pipe).poll_write(&mut cx, bytes);
    assert!(matches!(written, Poll::Ready(Ok(count)) if count == bytes.len()));
}

fn poll_once<F: Future>(future: &mut Pin<&mut F>) -> Poll<F::Output> {
    future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
}

fn poll_some<F: Future>(future: &mut Pin<&mut F>) -> Poll<F::Output> {
    for _ in 1..MAX_POLLS {
        let result = poll_once(future);
        if result.is_ready() {
            return result;
        }
    }
    poll_once(future)
}

fn list(headers: &hyper::HeaderMap) -> Vec<Header> {
    headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect()
}
