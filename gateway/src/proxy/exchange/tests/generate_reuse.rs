//! Random scripts in which connections to the endpoint are used again, and close while they are idle or at the next
//! request.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::generate::{request, response};
use super::script::{
    AfterResponse, BodyPlan, ClientPlan, ClientReading, Cut, CutKind, Expectation, INTERIM_BYTES,
    Pace, RequestPlan, ResponseBegin, ResponsePlan, Script, SendOrder,
};

/// Clients that send and read at once, each several requests, and an endpoint that keeps most connections.
pub(super) fn reuse_script() -> impl Strategy<Value = Script> {
    let response = prop_oneof![
        4 => kept(),
        3 => closed(),
        1 => response(),
    ];
    (vec(client(), 1..4), vec(response, 0..12)).prop_map(|(clients, responses)| Script {
        clients,
        connects: Vec::new(),
        responses,
    })
}

fn client() -> impl Strategy<Value = ClientPlan> {
    let order = prop_oneof![
        3 => Just(SendOrder::AfterResponse),
        1 => Just(SendOrder::Pipelined),
    ];
    let rest = prop_oneof![
        2 => Just(Duration::ZERO),
        1 => Just(Duration::from_millis(1)),
        1 => Just(Duration::from_millis(300)),
    ];
    (vec(small_request(), 2..6), order, rest).prop_map(|(requests, order, rest)| ClientPlan {
        requests,
        order,
        pace: Pace::AT_ONCE,
        rest,
        reading: ClientReading::AtOnce,
        stop: None,
    })
}

/// Requests without defects, some with more than a connection holds.
fn small_request() -> impl Strategy<Value = RequestPlan> {
    let body = prop_oneof![
        3 => Just(BodyPlan::None),
        2 => (1..200_usize).prop_map(BodyPlan::Length),
        2 => Just(BodyPlan::Length(30_000)),
        1 => Just(BodyPlan::Length(66_000)),
    ];
    (request(), body).prop_map(|(request, body)| RequestPlan {
        body,
        expectation: match body {
            BodyPlan::None => Expectation::None,
            _ => request.expectation,
        },
        defect: None,
        ..request
    })
}

/// Complete responses after which the connection remains open, some of them before the request is complete.
fn kept() -> impl Strategy<Value = ResponsePlan> {
    let begin = prop_oneof![
        3 => Just(ResponseBegin::AfterRequest),
        1 => Just(ResponseBegin::AfterHeaders),
        2 => Just(ResponseBegin::BeforeBody),
    ];
    let idle = prop_oneof![
        Just(Duration::ZERO),
        Just(Duration::from_millis(1)),
        Just(Duration::from_millis(200)),
    ];
    let after = prop_oneof![
        6 => Just(AfterResponse::Keep),
        1 => idle.clone().prop_map(AfterResponse::Close),
        1 => idle.prop_map(AfterResponse::Surplus),
        1 => Just(AfterResponse::SurplusAtOnce),
    ];
    let late = prop_oneof![
        2 => Just(Duration::ZERO),
        1 => Just(Duration::from_millis(20)),
    ];
    (begin, after, late, 0..100_usize).prop_map(|(begin, after, delay, size)| ResponsePlan {
        begin,
        delay,
        size,
        after,
        ..ResponsePlan::default()
    })
}

/// Closes without a response or early in it, on either side of the time in which a close counts as that of an idle
/// connection.
fn closed() -> impl Strategy<Value = ResponsePlan> {
    let begin = prop_oneof![
        2 => Just(ResponseBegin::AfterRequest),
        1 => Just(ResponseBegin::AfterHeaders),
    ];
    let delay = prop_oneof![
        3 => Just(Duration::ZERO),
        2 => Just(Duration::from_millis(240)),
        2 => Just(Duration::from_millis(260)),
    ];
    let interim = vec(Just(103), 0..2);
    let at = prop_oneof![3 => Just(0_usize), 2 => Just(INTERIM_BYTES), 1 => 1..60_usize];
    let how = prop_oneof![3 => Just(CutKind::Close), 1 => Just(CutKind::Reset)];
    (begin, delay, interim, at, how).prop_map(|(begin, delay, interim, at, how)| ResponsePlan {
        begin,
        delay,
        interim,
        cut: Some(Cut { at, how }),
        ..ResponsePlan::default()
    })
}
