//! The server beside the client of the crate `h2`, a second implementation: each reads what the other has sent.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use prometheus::IntGauge;
use proptest::prelude::*;
use tokio::sync::watch;

use super::*;
use crate::config::{Config, Environment, Limits};
use crate::http::downstream::{Backpressure, Downstream, DownstreamEvent};
use crate::http::message::{Framing, RequestHeaders, ResponseHeaders};

/// Message with the headers that each side may choose.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    headers: HeaderMap,
    body: Vec<u8>,
}

/// Exchange that both sides are to see in the same way.
#[derive(Debug, Clone)]
struct Expected {
    method: Method,
    path: String,
    request: Message,
    status: StatusCode,
    response: Message,
}

struct Handler {
    limits: Limits,
    unsent_responses: IntGauge,
    expected: Vec<Expected>,
    received: RefCell<Vec<(Method, String, Message)>>,
}

impl RequestHandler for Handler {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn default_host(&self, _: SocketAddr) -> Option<HeaderValue> {
        None
    }

    fn unsent_responses(&self) -> &IntGauge {
        &self.unsent_responses
    }

    async fn serve(
        &self,
        mut request: RequestHeaders,
        downstream: &mut impl Downstream,
        timer: &mut IdleTimer,
    ) {
        let mut body = Vec::new();
        loop {
            match poll_fn(|cx| downstream.poll(cx, Backpressure::Ready)).await {
                DownstreamEvent::Data(data) => body.extend_from_slice(&data),
                DownstreamEvent::End => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(request.headers.remove("host").unwrap(), "a.example");
        let number = self.received.borrow().len();
        let headers = request.headers;
        let target = String::from_utf8(request.target.as_bytes().to_vec()).unwrap();
        let message = Message { headers, body };
        self.received
            .borrow_mut()
            .push((request.method, target, message));
        let expected = &self.expected[number];
        let length = expected.response.body.len();
        downstream.send_interim(&ResponseHeaders {
            status: StatusCode::EARLY_HINTS,
            reason: None,
            headers: expected.response.headers.clone(),
            framing: Framing::Empty,
        });
        downstream.send_headers(ResponseHeaders {
            status: expected.status,
            reason: None,
            headers: expected.response.headers.clone(),
            framing: if number.is_multiple_of(2) {
                Framing::Length(length as u64)
            } else {
                Framing::Chunked
            },
        });
        for part in expected.response.body.chunks(10_000) {
            downstream.send_data(Bytes::copy_from_slice(part));
        }
        downstream.finish();
        wait_until_sent(downstream, timer, self.limits.idle_timeout).await;
        // The access log and the budget of buffered bytes use these.
        assert_eq!(downstream.status(), Some(expected.status));
        assert_eq!(downstream.sent_body_bytes(), length as u64);
        assert!(downstream.buffered_bytes() <= 4096, "waits for the client");
    }

    fn reject(&self, error: RequestError, _: &Method, _: Version, _: &mut impl Downstream) {
        panic!("{error}");
    }

    fn record_malformed(&self, _: Version) {
        panic!("a malformed request");
    }
}

async fn run_client(io: tokio::io::DuplexStream, expected: &[Expected]) {
    let (mut client, connection) = h2::client::Builder::new()
        .initial_window_size(20_000)
        .handshake::<_, Bytes>(io)
        .await
        .unwrap();
    let exchanges = async {
        for exchange in expected {
            let mut request = Request::builder()
                .method(exchange.method.clone())
                .uri(format!("https://a.example{}", exchange.path))
                .body(())
                .unwrap();
            request.headers_mut().clone_from(&exchange.request.headers);
            client = client.ready().await.unwrap();
            let (response, mut body) = client.send_request(request, false).unwrap();
            let data = Bytes::copy_from_slice(&exchange.request.body);
            body.send_data(data, true).unwrap();
            let response = response.await.unwrap();
            assert_eq!(response.status(), exchange.status);
            let (mut parts, mut body) = response.into_parts();
            if let Some(length) = parts.headers.remove("content-length") {
                assert_eq!(length, exchange.response.body.len().to_string());
            }
            let mut received = Vec::new();
            while let Some(data) = body.data().await {
                let data = data.unwrap();
                body.flow_control().release_capacity(data.len()).unwrap();
                received.extend_from_slice(&data);
            }
            let message = Message {
                headers: parts.headers,
                body: received,
            };
            assert_eq!(message, exchange.response);
        }
        drop(client);
    };
    let (connection, ()) = tokio::join!(connection, exchanges);
    connection.unwrap();
}

fn message(max_body: usize) -> impl Strategy<Value = Message> {
    let name = prop_oneof![
        "x-[a-z0-9-]{0,12}",
        "accept|user-agent|authorization|referer|etag|vary|link|set-cookie",
    ];
    let value = "([!-~\u{e4}]([ -~]{0,60}[!-~])?)?";
    let header = (name, value, any::<bool>());
    let headers = prop::collection::vec(header, 0..8).prop_map(|headers| {
        let mut map = HeaderMap::new();
        for (name, value, is_sensitive) in headers {
            let mut value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            value.set_sensitive(is_sensitive);
            map.append(HeaderName::try_from(name).unwrap(), value);
        }
        map
    });
    let body = (0..max_body).prop_map(|length| (0_u8..=255).cycle().take(length).collect());
    (headers, body).prop_map(|(headers, body)| Message { headers, body })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn requests_and_responses_are_those_that_another_implementation_sees(
        expected in prop::collection::vec(
            (
                prop_oneof!["GET|POST|PUT|DELETE", "[A-Z]{1,10}X"],
                "/[a-zA-Z0-9/._~-]{0,40}",
                message(100_000),
                200_u16..600,
                message(200_000),
            ).prop_map(|(method, path, request, status, response)| Expected {
                method: Method::from_bytes(method.as_bytes()).unwrap(),
                path,
                request,
                status: StatusCode::from_u16(status).unwrap(),
                response,
            }),
            1..8,
        ),
    ) {
        let environment = Environment::for_tests();
        let config = Config::parse("gateway.yml".as_ref(), "premier: {}\n", &environment);
        let handler = Handler {
            limits: config.unwrap().limits,
            unsent_responses: IntGauge::new("unsent", "responses").unwrap(),
            expected: expected.clone(),
            received: RefCell::default(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let (client, server) = tokio::io::duplex(16 * 1024);
        let (_begin_shutdown, shutdown) = watch::channel(false);
        runtime.block_on(async {
            tokio::join!(
                serve(&handler, Box::new(server), &shutdown),
                run_client(client, &expected),
            )
        });
        let sent: Vec<_> = expected
            .into_iter()
            .map(|exchange| (exchange.method, exchange.path, exchange.request))
            .collect();
        prop_assert_eq!(handler.received.into_inner(), sent);
        prop_assert_eq!(handler.unsent_responses.get(), 0);
    }
}
