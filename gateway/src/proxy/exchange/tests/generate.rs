//! Random scripts.

use std::time::Duration;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::script::{
    AfterResponse, BodyPlan, ChunkedEnd, ClientPlan, ClientReading, ConnectPlan, Cut, CutKind,
    Expectation, HeaderDefect, PLAIN_PATH, Pace, RETRY_PATH, RequestPlan, ResponseBegin,
    ResponseFraming, ResponsePlan, Script, SendOrder, Stop, StopKind,
};

pub(super) fn script() -> impl Strategy<Value = Script> {
    let connect = prop_oneof![
        6 => Just(ConnectPlan::Accepted),
        1 => Just(ConnectPlan::Refused),
        1 => Just(ConnectPlan::TimesOut),
    ];
    (
        vec(client(), 1..3),
        vec(connect, 0..5),
        vec(response(), 0..8),
    )
        .prop_map(|(clients, connects, responses)| Script {
            clients,
            connects,
            responses,
        })
}

/// Scripts in which nothing fails, and nothing is done that forbids to use a connection again.
pub(super) fn clean_script() -> impl Strategy<Value = Script> {
    script().prop_map(|mut script| {
        script.connects.clear();
        for client in &mut script.clients {
            client.pace.pause = client.pace.pause.min(Duration::from_millis(1));
            client.reading = ClientReading::AtOnce;
            client.stop = None;
            for request in &mut client.requests {
                // A response to HEAD announces a body, and an endpoint might send it.
                if request.method == "HEAD" {
                    request.method = "GET";
                }
                request.body = match request.body {
                    BodyPlan::Length(size) => BodyPlan::Length(size.min(150_000)),
                    BodyPlan::MalformedChunks(size) => BodyPlan::Chunked {
                        size: size.min(150_000),
                        chunk: 50,
                        end: ChunkedEnd::LastChunk,
                    },
                    BodyPlan::Chunked { size, end, .. } => BodyPlan::Chunked {
                        size: size.min(150_000),
                        chunk: 50,
                        end,
                    },
                    BodyPlan::None => BodyPlan::None,
                };
                request.expectation = Expectation::None;
                request.defect = None;
            }
        }
        for response in &mut script.responses {
            *response = ResponsePlan {
                begin: ResponseBegin::AfterRequest,
                delay: response.delay.min(Duration::from_secs(2)),
                status: if response.status == 503 {
                    200
                } else {
                    response.status
                },
                framing: match response.framing {
                    ResponseFraming::UntilClose => ResponseFraming::Length,
                    other => other,
                },
                pace: Pace {
                    pause: Duration::ZERO,
                    ..response.pace
                },
                cut: None,
                after: AfterResponse::Keep,
                ..response.clone()
            };
        }
        script
    })
}

fn client() -> impl Strategy<Value = ClientPlan> {
    let order = prop_oneof![
        2 => Just(SendOrder::AfterResponse),
        1 => Just(SendOrder::Pipelined),
    ];
    let reading = prop_oneof![
        8 => Just(ClientReading::AtOnce),
        1 => pause().prop_map(ClientReading::Slow),
        1 => byte_position().prop_map(ClientReading::StopsAfter),
    ];
    let how = prop_oneof![
        Just(StopKind::Close),
        Just(StopKind::HalfClose),
        Just(StopKind::Reset),
        Just(StopKind::Stall),
    ];
    let stop = (0..4_usize, byte_position(), how);
    let stop = stop.prop_map(|(request, at, how)| Stop { request, at, how });
    let stop = option::weighted(0.3, stop);
    (vec(request(), 1..5), order, pace(), reading, stop).prop_map(
        |(requests, order, pace, reading, stop)| ClientPlan {
            requests,
            order,
            pace,
            rest: Duration::ZERO,
            reading,
            stop,
        },
    )
}

pub(super) fn request() -> impl Strategy<Value = RequestPlan> {
    let method = prop::sample::select(vec![
        "GET", "POST", "PUT", "HEAD", "DELETE", "PATCH", "OPTIONS",
    ]);
    let path = prop::sample::select(vec![RETRY_PATH, PLAIN_PATH]);
    let chunk = prop_oneof![Just(1_usize), 2..50_usize, Just(5000)];
    let body = prop_oneof![
        6 => Just(BodyPlan::None),
        3 => size().prop_map(BodyPlan::Length),
        3 => (size(), chunk, chunked_end())
            .prop_map(|(size, chunk, end)| BodyPlan::Chunked { size, chunk, end }),
        1 => size().prop_map(BodyPlan::MalformedChunks),
    ];
    let expectation = prop_oneof![
        4 => Just(Expectation::None),
        1 => Just(Expectation::Continue),
    ];
    let defect = prop_oneof![Just(HeaderDefect::Syntax), Just(HeaderDefect::Framing)];
    let defect = option::weighted(0.08, defect);
    (method, path, body, expectation, defect).prop_map(
        |(method, path, body, expectation, defect)| RequestPlan {
            method,
            path,
            body,
            expectation: match body {
                BodyPlan::None => Expectation::None,
                _ => expectation,
            },
            defect,
        },
    )
}

pub(super) fn response() -> impl Strategy<Value = ResponsePlan> {
    let begin = prop_oneof![
        6 => Just(ResponseBegin::AfterRequest),
        2 => Just(ResponseBegin::AfterHeaders),
        1 => Just(ResponseBegin::BeforeBody),
        1 => Just(ResponseBegin::Never),
    ];
    let delay = prop_oneof![3 => Just(Duration::ZERO), 1 => pause()];
    let interim = vec(prop::sample::select(vec![100, 103]), 0..3);
    let status = prop::sample::select(vec![200, 200, 200, 404, 204, 500, 503]);
    let chunk = prop_oneof![Just(1_usize), 2..50_usize, Just(5000)];
    let framing = prop_oneof![
        4 => Just(ResponseFraming::Length),
        2 => (chunk, chunked_end()).prop_map(|(chunk, end)| ResponseFraming::Chunked(chunk, end)),
        1 => Just(ResponseFraming::UntilClose),
    ];
    let how = prop_oneof![
        Just(CutKind::Close),
        Just(CutKind::Reset),
        Just(CutKind::Stall),
    ];
    let cut = (byte_position(), how).prop_map(|(at, how)| Cut { at, how });
    let after = prop_oneof![
        6 => Just(AfterResponse::Keep),
        1 => Just(AfterResponse::AnnounceClose),
        1 => pause().prop_map(AfterResponse::Close),
        1 => pause().prop_map(AfterResponse::Surplus),
        1 => Just(AfterResponse::SurplusAtOnce),
    ];
    let shape = (begin, delay, interim, status, framing, size());
    (shape, pace(), option::weighted(0.25, cut), after).prop_map(
        |((begin, delay, interim, status, framing, size), pace, cut, after)| ResponsePlan {
            begin,
            delay,
            interim,
            status,
            framing,
            size,
            pace,
            cut,
            after,
        },
    )
}

fn pace() -> impl Strategy<Value = Pace> {
    let piece = prop_oneof![
        4 => Just(1000_usize),
        1 => Just(1_usize),
        2 => 2..200_usize,
    ];
    let pause = prop_oneof![
        4 => Just(Duration::ZERO),
        2 => Just(Duration::from_millis(1)),
        1 => Just(Duration::from_millis(900)),
    ];
    (piece, pause).prop_map(|(piece, pause)| Pace { piece, pause })
}

/// Pauses below and above each timeout of the configuration.
fn pause() -> impl Strategy<Value = Duration> {
    prop_oneof![
        2 => Just(Duration::ZERO),
        2 => Just(Duration::from_millis(1)),
        1 => Just(Duration::from_millis(300)),
        1 => Just(Duration::from_secs(2)),
        1 => Just(Duration::from_secs(8)),
    ]
}

fn chunked_end() -> impl Strategy<Value = ChunkedEnd> {
    prop_oneof![3 => Just(ChunkedEnd::LastChunk), 1 => Just(ChunkedEnd::Trailers)]
}

/// Sizes of bodies, around what is buffered for a retry, buffered for a side that does not read, and accepted.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        8 => 0..200_usize,
        1 => Just(65_000),
        1 => Just(66_000),
        1 => Just(150_000),
        1 => Just(250_000),
    ]
}

/// Positions in a message, more of them in its headers.
fn byte_position() -> impl Strategy<Value = usize> {
    prop_oneof![1 => Just(0), 4 => 1..300_usize, 1 => 300..200_000_usize]
}
