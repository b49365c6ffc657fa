//! Encoding of the counters, and hand-overs in memory.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use http::HeaderMap;
use proptest::prelude::*;

use super::encoding::{
    FRAME_HEADER_BYTES, Identity, InvalidPart, MAX_FRAME_BYTES, MAX_KEY_COUNTERS, Part, VERSION,
};
use super::remote::{DecisionRequest, decode_reply, encode_reply};
use super::transfer::{HandOverError, receive, send};
use crate::client::ClientKey;
use crate::config::{Config, Environment};
use crate::features::rate_limit::algorithm::QuotaState;
use crate::features::rate_limit::count_min_sketch::{SKETCH_COUNTERS, SketchCopy};
use crate::features::rate_limit::key_hasher::KeyHasher;
use crate::features::rate_limit::key_limit::{COUNTERS, MAX_KEYS_PER_CLIENT};
use crate::features::rate_limit::store::{BUCKETS, SLOTS_PER_BUCKET, SlotCopy};
use crate::features::rate_limit::{Quota, QuotaDecision, QuotaStatus, QuotaStore};
use crate::runtime::clock::Instant;

const ALGORITHMS: [&str; 4] = [
    "fixed_window",
    "sliding_window",
    "token_bucket",
    "leaky_bucket",
];

fn quota(pattern: &str, rule: &str) -> Quota {
    let yaml = format!(
        "premier: {{paths: [{{pattern: '{pattern}', features: {{rate_limit: {{{rule}}}}}}}]}}"
    );
    let config = Config::parse("gateway.yml".as_ref(), &yaml, &Environment::for_tests()).unwrap();
    let rule = config.paths[0].features.rate_limit.as_ref().unwrap();
    Quota::new(pattern, rule)
}

fn client(number: u32) -> ClientKey {
    ClientKey::from(std::net::IpAddr::V4(Ipv4Addr::from_bits(number)))
}

fn passes(quota: &Quota, store: &QuotaStore, number: u32, path: &str) -> bool {
    let decision = quota.take(
        store,
        client(number),
        path,
        &HeaderMap::new(),
        Instant::now(),
    );
    !matches!(decision, QuotaDecision::Rejected(..))
}

/// Returns how many of `count` requests pass.
fn passed(quota: &Quota, store: &QuotaStore, number: u32, path: &str, count: usize) -> usize {
    (0..count)
        .filter(|_| passes(quota, store, number, path))
        .count()
}

fn sent(store: &QuotaStore, quotas: &[&Quota]) -> Vec<u8> {
    let mut bytes = Vec::new();
    send(store, quotas, &mut bytes, || {}).unwrap();
    bytes
}

#[test]
fn what_was_used_before_stays_used() {
    for algorithm in ALGORITHMS {
        let rule = format!("quota: 100, duration: 864000, algorithm: {algorithm}");
        let (old, before) = (QuotaStore::new(), quota("/a", &rule));
        assert_eq!(passed(&before, &old, 1, "/a", 30), 30);
        let bytes = sent(&old, &[&before]);
        let (new, after) = (QuotaStore::new(), quota("/a", &rule));
        assert_eq!(receive(&new, &[&after], &mut &bytes[..]).unwrap(), 1);
        assert_eq!(passed(&after, &new, 1, "/a", 100), 70, "{algorithm}");
        assert_eq!(passed(&after, &new, 2, "/a", 200), 100, "{algorithm}");
    }
}

#[test]
fn a_changed_rule_begins_anew() {
    let unchanged = "quota: 100, duration: 864000";
    let (old, before) = (QuotaStore::new(), quota("/a", unchanged));
    assert_eq!(passed(&before, &old, 1, "/a", 30), 30);
    let bytes = sent(&old, &[&before]);
    let new = QuotaStore::new();
    let (same, other_quota, other_duration, other_algorithm, other_key, other_pattern) = (
        quota("/a", unchanged),
        quota("/a", "quota: 101, duration: 864000"),
        quota("/a", "quota: 100, duration: 864001"),
        quota(
            "/a",
            "quota: 100, duration: 864000, algorithm: token_bucket",
        ),
        quota("/a", "quota: 100, duration: 864000, per: [client]"),
        quota("/b", unchanged),
    );
    receive(&new, &[&same], &mut &bytes[..]).unwrap();
    assert_eq!(passed(&same, &new, 1, "/a", 200), 70);
    assert_eq!(passed(&other_quota, &new, 1, "/a", 200), 101);
    for other in [other_duration, other_algorithm, other_key, other_pattern] {
        assert_eq!(passed(&other, &new, 1, "/a", 200), 100);
    }
}

#[test]
fn the_limit_of_keys_and_the_sketches_are_handed_over() {
    let rule = "quota: 2, duration: 864000";
    let (old, before) = (QuotaStore::new(), quota("/a", rule));
    for number in 0..MAX_KEYS_PER_CLIENT {
        assert!(passes(&before, &old, 1, &format!("/{number}")));
    }
    let counted = before.overflow.take(7, Instant::now());
    assert!(matches!(
        counted,
        crate::features::rate_limit::AlgorithmDecision::Passed { .. }
    ));
    let bytes = sent(&old, &[&before]);
    let (new, after) = (QuotaStore::new(), quota("/a", rule));
    receive(&new, &[&after], &mut &bytes[..]).unwrap();
    // These share the one quota of a client over its limit.
    let rest = (0..5).filter(|number| passes(&after, &new, 1, &format!("/new/{number}")));
    assert_eq!(rest.count(), 2);
    assert_eq!(after.overflow.count(7, Instant::now()), 1);
}

#[test]
fn every_request_is_counted_once_while_the_counters_move() {
    const QUOTA: u32 = 200_000;
    let rule = format!("quota: {QUOTA}, duration: 864000, per: [client]");
    let (old, before) = (QuotaStore::new(), quota("/a", &rule));
    // A store of many keys takes some time.
    for number in 1000..60_000 {
        passes(&before, &old, number, "/a");
    }
    let (passed_before, begun) = (AtomicU32::new(0), AtomicBool::new(false));
    let count = || {
        let key = before.key(&old, client(1).into(), "/a", &HeaderMap::new());
        while let Ok(decision) =
            before.take_unless_handed_over(&old, client(1), key, Instant::now())
        {
            begun.store(true, Ordering::Relaxed);
            if matches!(decision, QuotaDecision::Passed(_)) {
                passed_before.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let bytes = std::thread::scope(|scope| {
        scope.spawn(count);
        scope.spawn(count);
        while !begun.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        sent(&old, &[&before])
    });
    let (new, after) = (QuotaStore::new(), quota("/a", &rule));
    receive(&new, &[&after], &mut &bytes[..]).unwrap();
    let passed_after = passed(&after, &new, 1, "/a", QUOTA as usize + 10);
    let passed_before = passed_before.load(Ordering::Relaxed);
    assert!(passed_before > 0);
    assert_eq!(passed_before as usize + passed_after, QUOTA as usize);
}

#[test]
fn malformed_counters_leave_none() {
    let rule = "quota: 1, duration: 864000, per: [client]";
    let (old, before) = (QuotaStore::new(), quota("/a", rule));
    for number in 0..100 {
        passes(&before, &old, number, "/a");
    }
    let bytes = sent(&old, &[&before]);
    for length in (0..bytes.len()).step_by(7) {
        let (new, after) = (QuotaStore::new(), quota("/a", rule));
        let error = receive(&new, &[&after], &mut &bytes[..length]).unwrap_err();
        assert!(matches!(error, HandOverError::Connection(_)), "{error}");
        assert!(passes(&after, &new, 1, "/a"), "{length}");
    }
    let receive_changed = |position: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[position] = byte;
        let (new, after) = (QuotaStore::new(), quota("/a", rule));
        let error = receive(&new, &[&after], &mut &bytes[..]).unwrap_err();
        assert!(passes(&after, &new, 1, "/a"), "{error}");
        error
    };
    assert!(matches!(
        receive_changed(0, b'X'),
        HandOverError::NoCounters
    ));
    let version = u8::try_from(VERSION).unwrap() + 1;
    assert!(matches!(
        receive_changed(8, version),
        HandOverError::Version(_)
    ));
    assert!(matches!(
        receive_changed(10, 9),
        HandOverError::Malformed(InvalidPart::UnknownKind)
    ));
    assert!(matches!(receive_changed(14, 1), HandOverError::TooLong));
    // The key of the hash does not fit its sample any more.
    assert!(matches!(
        receive_changed(15, !bytes[15]),
        HandOverError::OtherHash
    ));
    // The clock is far ahead.
    assert!(matches!(
        receive_changed(15 + 31, 0x7f),
        HandOverError::OtherClock
    ));
}

#[test]
fn counters_are_not_taken_over_after_a_request() {
    let (old, before) = (QuotaStore::new(), quota("/a", "quota: 1, duration: 60"));
    let bytes = sent(&old, &[&before]);
    let new = QuotaStore::new();
    passes(&before, &new, 1, "/a");
    let error = receive(&new, &[&before], &mut &bytes[..]).unwrap_err();
    assert!(matches!(error, HandOverError::InUse), "{error}");
}

#[test]
fn a_part_has_no_more_slots_and_counters_than_there_can_be() {
    let slot = SlotCopy {
        position: 0,
        tag: 1,
        expiry: Instant(1),
        state: QuotaState::default(),
    };
    let bucket = |count| Part::Bucket {
        index: 0,
        slots: vec![slot; count],
    };
    let counters = |count| Part::KeyCounters(vec![(0, 1); count]);
    for (most, too_many) in [
        (bucket(SLOTS_PER_BUCKET), bucket(SLOTS_PER_BUCKET + 1)),
        (counters(MAX_KEY_COUNTERS), counters(MAX_KEY_COUNTERS + 1)),
    ] {
        let decoded = |part: &Part| {
            let mut bytes = Vec::new();
            part.encode(&mut bytes);
            Part::decode(bytes[0], &bytes[FRAME_HEADER_BYTES..])
        };
        assert_eq!(decoded(&most), Ok(most));
        assert_eq!(decoded(&too_many), Err(InvalidPart::TooLong));
    }
}

prop_compose! {
    fn slots()(
        slots in proptest::collection::vec(
            (0..SLOTS_PER_BUCKET, any::<[u64; 3]>(), any::<[u16; 12]>()), 0..=SLOTS_PER_BUCKET
        )
    ) -> Vec<SlotCopy> {
        let slot = |(position, [tag, expiry, time], counters): (usize, [u64; 3], [u16; 12])| SlotCopy {
            position,
            tag,
            expiry: Instant(expiry),
            state: QuotaState { time, counters: counters.map(u32::from) },
        };
        slots.into_iter().map(slot).collect()
    }
}

fn parts() -> impl Strategy<Value = Part> {
    prop_oneof![
        any::<[u64; 4]>().prop_map(|[first, second, sample_hash, now]| {
            Part::Identity(Identity {
                hasher: KeyHasher {
                    key: [first, second],
                },
                sample_hash,
                now: Instant(now),
            })
        }),
        (0..BUCKETS, slots()).prop_map(|(index, slots)| Part::Bucket { index, slots }),
        proptest::collection::vec((0..COUNTERS, any::<u64>()), 0..100).prop_map(Part::KeyCounters),
        (any::<[u64; 2]>(), any::<u32>()).prop_map(|([quota, window], seed)| {
            let counters = |factor: u32| {
                let count = u32::try_from(SKETCH_COUNTERS).unwrap();
                let counter = |index: u32| index.wrapping_mul(seed).wrapping_mul(factor);
                (0..count).map(counter).collect()
            };
            Part::Sketch {
                quota,
                copy: SketchCopy {
                    window,
                    counters: [counters(1), counters(3)],
                },
            }
        }),
        Just(Part::End),
    ]
}

proptest! {
    #[test]
    fn a_part_is_decoded_as_it_was_encoded(part in parts()) {
        let mut bytes = Vec::new();
        part.encode(&mut bytes);
        let (header, rest) = bytes.split_at(FRAME_HEADER_BYTES);
        prop_assert!(rest.len() <= MAX_FRAME_BYTES);
        prop_assert_eq!(header[1..].to_vec(), u32::try_from(rest.len()).unwrap().to_le_bytes());
        prop_assert_eq!(Part::decode(header[0], rest), Ok(part));
        if !rest.is_empty() {
            let shorter = Part::decode(header[0], &rest[..rest.len() - 1]);
            prop_assert!(shorter.is_err());
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_rejected(kind in 0..8u8, rest in proptest::collection::vec(any::<u8>(), 0..2000)) {
        if let Ok(part) = Part::decode(kind, &rest) {
            let mut bytes = Vec::new();
            part.encode(&mut bytes);
            prop_assert_eq!(&bytes[FRAME_HEADER_BYTES..], &rest[..]);
        }
    }

    #[test]
    fn any_state_can_be_counted_on(slots in slots(), index in 0..BUCKETS) {
        let store = QuotaStore::new();
        store.restore(index, &slots);
        for algorithm in ALGORITHMS {
            let rule = format!("quota: 3, duration: 60, algorithm: {algorithm}");
            let quota = quota("/a", &rule);
            for number in 0..3 {
                passes(&quota, &store, number, "/a");
            }
            for slot in &slots {
                let key = slot.tag & !(BUCKETS as u64 - 1) | index as u64;
                let _ = quota.take_unless_handed_over(&store, client(1), key, Instant::now());
            }
        }
    }

    #[test]
    fn a_request_for_a_decision_and_its_reply_are_decoded_as_they_were_encoded(
        numbers in any::<[u64; 2]>(), bits in any::<u128>(), remaining in any::<u32>(), times in any::<[u64; 2]>(), kind in 0..4
    ) {
        let request = DecisionRequest {
            quota: numbers[0],
            key: numbers[1],
            client: ClientKey::from_bits(bits),
        };
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        prop_assert_eq!(DecisionRequest::decode(bytes.try_into().unwrap()), request);
        let status = QuotaStatus { remaining, reset: times[0] };
        let reply = match kind {
            0 => None,
            1 => Some(QuotaDecision::Passed(status)),
            2 => Some(QuotaDecision::Delayed(status, std::time::Duration::from_nanos(times[1]))),
            _ => Some(QuotaDecision::Rejected(status, times[1])),
        };
        let mut bytes = Vec::new();
        encode_reply(reply, &mut bytes);
        prop_assert_eq!(decode_reply(bytes.try_into().unwrap()), reply);
    }
}

/// Prints how long a full store takes.
#[test]
#[ignore = "a measurement"]
#[expect(clippy::print_stderr, reason = "a measurement")]
fn time_of_a_full_store() {
    let rule = "quota: 5, duration: 864000, per: [client]";
    let (old, before) = (QuotaStore::new(), quota("/a", rule));
    for number in 0..1_000_000 {
        passes(&before, &old, number, "/a");
    }
    let start = std::time::Instant::now();
    let (mut switch, mut bytes) = (start, Vec::new());
    let switched = || switch = std::time::Instant::now();
    let buckets = send(&old, &[&before], &mut bytes, switched).unwrap();
    let (sent, waited) = (start.elapsed(), switch.elapsed());
    let (new, after) = (QuotaStore::new(), quota("/a", rule));
    let start = std::time::Instant::now();
    receive(&new, &[&after], &mut &bytes[..]).unwrap();
    let (received, length) = (start.elapsed(), bytes.len());
    eprintln!(
        "{buckets} buckets, {length} bytes: sent in {sent:?}, the last {waited:?} of it while requests wait; \
         received in {received:?}"
    );
}
