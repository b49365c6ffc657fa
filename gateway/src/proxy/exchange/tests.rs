//! The exchange between scripted clients and a scripted endpoint, in memory and under paused time: random scripts,
//! and invariants of what both sides observe.

mod arrival;
mod client;
mod endpoint;
mod generate;
mod generate_reuse;
mod history;
mod interim;
mod pipe;
mod response_parser;
mod script;
mod sending;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures::future::join_all;
use http::{HeaderValue, Method, Version};
use parking_lot::Mutex;
use prometheus::IntGauge;
use proptest::prelude::*;
use tokio::sync::watch;
use tokio::time::timeout;

use super::*;
use crate::config::{Config, Environment, Limits};
use crate::http::h1;
use crate::http::handler::RequestHandler;
use crate::http::message::RequestError;
use crate::proxy;
use crate::proxy::state::GatewayState;
use crate::tls::handshake::Peer;
use crate::upstream::Resolver;
use client::Client;
use endpoint::ScriptedConnector;
use generate::{clean_script, script};
use generate_reuse::reuse_script;
use history::{History, SharedHistory};
use logging::AccessLog;
use pipe::pipe;
use script::{
    BodyPlan, ClientPlan, ClientReading, Cut, CutKind, Expectation, Pace, RETRY_PATH, RequestPlan,
    ResponsePlan, Script, SendOrder,
};

/// Time after which a connection has ended, whatever the pauses of a script are.
const MAX_CONNECTION_DURATION: Duration = Duration::from_hours(2);

static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let yaml = "
premier:
  servers: [http://192.0.2.1:80]
  health_check: null
  limits:
    max_body_bytes: 200000
    max_header_bytes: 1024
    header_timeout: 2
    body_timeout: 3
    idle_timeout: 5
    stream_idle_timeout: 7
  paths:
    - pattern: /retry/*
      features:
        timeout: {seconds: 4}
        retry: {max_attempts: 3, wait: [0.1]}
";
    Config::parse("gateway.yml".as_ref(), yaml, &Environment::for_tests()).unwrap()
});

/// Serves the requests of one client, and records when.
struct Handler<'h> {
    gateway: &'h GatewayState,
    peer: Peer,
    history: &'h SharedHistory,
}

impl RequestHandler for Handler<'_> {
    fn limits(&self) -> Limits {
        self.gateway.limits()
    }

    fn default_host(&self, _: SocketAddr) -> Option<HeaderValue> {
        None
    }

    fn unsent_responses(&self) -> &IntGauge {
        &self.gateway.unsent_responses
    }

    async fn serve(
        &self,
        request: RequestHeaders,
        downstream: &mut impl Downstream,
        timer: &mut IdleTimer,
    ) {
        let target = str::from_utf8(request.target.as_bytes());
        let Some(number) = target.ok().and_then(Script::number_in) else {
            let violation = || format!("the gateway received {target:?}");
            return self.history.lock().require(false, violation);
        };
        self.history.lock().begin_exchange(number);
        proxy::serve(self.gateway, &self.peer, request, downstream, timer).await;
        self.history.lock().end_exchange(number);
    }

    fn reject(
        &self,
        error: RequestError,
        method: &Method,
        version: Version,
        downstream: &mut impl Downstream,
    ) {
        proxy::reject(self.gateway, &self.peer, error, method, version, downstream);
    }

    fn record_malformed(&self, _: Version) {}
}

/// Runs a script to the end of all connections.
fn run(script: &Script) -> History {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let history = Arc::new(Mutex::new(History::new(script)));
    runtime.block_on(serve_clients(script, &history));
    drop(runtime);
    Arc::into_inner(history).unwrap().into_inner()
}

async fn serve_clients(script: &Script, history: &SharedHistory) {
    let connector = Arc::new(ScriptedConnector::new(script, history));
    let gateway =
        GatewayState::with_connector(CONFIG.clone(), AccessLog::disabled(), connector).unwrap();
    let active = gateway.snapshot();
    let group = &active.upstreams.all()[0];
    group.resolve(&mut Resolver::new()).await;
    let (_begin_shutdown, shutdown) = watch::channel(false);
    let connections = script.clients.iter().enumerate().map(|(index, plan)| {
        let (gateway, shutdown) = (&gateway, &shutdown);
        async move {
            let handler = Handler {
                gateway,
                peer: Peer::unnamed(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                history,
            };
            let client = Client {
                index,
                plan,
                history,
            };
            let (gateway_end, client_end) = pipe();
            let served = h1::server::serve(&handler, Box::new(gateway_end), shutdown);
            let served = async {
                let result = timeout(MAX_CONNECTION_DURATION, served).await;
                history
                    .lock()
                    .require(result.is_ok(), || format!("connection {index} did not end"));
            };
            // A client that has stopped to read does not end.
            let client = timeout(MAX_CONNECTION_DURATION, client.run(client_end));
            let ((), _) = tokio::join!(served, client);
        }
    });
    join_all(connections).await;
    let endpoint = &group.endpoints()[0];
    let left = [
        gateway.metrics.in_flight.get().unsigned_abs(),
        gateway.metrics.buffered_response_bytes.get().unsigned_abs(),
        endpoint.in_flight() as u64,
        endpoint.connections_in_use() as u64,
    ];
    history.lock().require(left == [0; 4], || {
        format!("in flight, buffered, in flight to the endpoint, used connections: {left:?}")
    });
}

#[test]
fn a_request_is_sent_once_more_after_a_stale_connection_and_not_after_a_second_one() {
    let request = RequestPlan {
        method: "GET",
        path: RETRY_PATH,
        body: BodyPlan::None,
        expectation: Expectation::None,
        defect: None,
    };
    let client = |requests| ClientPlan {
        requests: vec![request.clone(); requests],
        order: SendOrder::AfterResponse,
        pace: Pace::AT_ONCE,
        rest: Duration::ZERO,
        reading: ClientReading::AtOnce,
        stop: None,
    };
    // Two exchanges at once leave two connections.
    let late = ResponsePlan {
        delay: Duration::from_secs(1),
        ..ResponsePlan::default()
    };
    let none = ResponsePlan {
        cut: Some(Cut {
            at: 0,
            how: CutKind::Close,
        }),
        ..ResponsePlan::default()
    };
    let unavailable = ResponsePlan {
        status: 503,
        ..ResponsePlan::default()
    };
    let script = Script {
        clients: vec![client(2), client(1)],
        connects: Vec::new(),
        responses: [&late, &late, &none, &none, &unavailable, &unavailable]
            .map(Clone::clone)
            .into(),
    };
    let history = run(&script);
    assert!(history.violations.is_empty(), "{:#?}", history.violations);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn every_exchange_keeps_the_invariants_whatever_both_sides_do(script in script()) {
        let history = run(&script);
        prop_assert!(history.violations.is_empty(), "{:#?}", history.violations);
    }

    #[test]
    fn a_connection_is_used_again_and_a_request_sent_again_only_if_that_is_safe(
        script in reuse_script(),
    ) {
        let history = run(&script);
        prop_assert!(history.violations.is_empty(), "{:#?}", history.violations);
    }

    #[test]
    fn clean_exchanges_are_forwarded_on_one_connection_for_each_client(script in clean_script()) {
        let history = run(&script);
        prop_assert!(history.violations.is_empty(), "{:#?}", history.violations);
        prop_assert_eq!(history.delivered, script.requests().count());
        prop_assert!(history.connections <= script.clients.len());
    }
}
