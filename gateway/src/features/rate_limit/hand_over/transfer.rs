//! Sending and receiving of the counters.
//!
//! A full store is 23 MiB in the stream, the limit of keys up to 1 MiB, and the sketches of a rule 128 KiB. Neither process
//! holds more than one part in memory, and no bucket is locked longer than its copying takes.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use session_invalidation::UserId;
use thiserror::Error;

use super::encoding::{
    FRAME_HEADER_BYTES, Identity, InvalidPart, MAGIC, MAX_FRAME_BYTES, MAX_KEY_COUNTERS, Part,
    VERSION,
};
use crate::client::ClientKey;
use crate::config::QuotaKeyPart;
use crate::features::rate_limit::key_hasher::KeyHasher;
use crate::features::rate_limit::store::{BUCKETS, QuotaStore};
use crate::features::rate_limit::{Quota, QuotaSender, hash_request};
use crate::runtime::clock::Instant;

/// Longest time that the counters may take from one process to the other.
pub(crate) const TRANSFER_TIMEOUT: Duration = Duration::from_millis(1500);
/// Rounds in which what has changed is sent again while requests are counted.
const MAX_ROUNDS: usize = 4;
/// Number of changed buckets that is sent while requests wait: less than a millisecond.
const MAX_LAST_BUCKETS: usize = 64;
/// Rules whose sketches are sent, 8 MiB. The sketches of others begin anew.
const MAX_SKETCHES: usize = 64;
/// Longest stream that is accepted.
const MAX_STREAM_BYTES: usize = 64 << 20;
/// Largest difference between the clocks of the processes: the time in which the stream waits to be read.
const MAX_CLOCK_DIFFERENCE: Duration = Duration::from_secs(30);

/// Reason the counters were not taken over.
#[derive(Debug, Error)]
pub(crate) enum HandOverError {
    #[error("the connection failed: {0}")]
    Connection(#[from] io::Error),
    #[error("what it sends are no counters")]
    NoCounters,
    #[error("it sends version {0} of the format instead of {expected}", expected = VERSION)]
    Version(u16),
    #[error("what it sends is malformed: {0}")]
    Malformed(#[from] InvalidPart),
    #[error("what it sends is too long")]
    TooLong,
    #[error("it hashes keys in another way")]
    OtherHash,
    #[error("it has another clock")]
    OtherClock,
    #[error("requests have been counted already")]
    InUse,
}

/// Sends the counters of this process. `before_last_changes` is called when the store is about to be handed over: from
/// then on requests have to be counted by the process that receives them. Returns the number of buckets that were sent.
///
/// # Errors
/// Returns an error if the output fails, or takes longer than [`TRANSFER_TIMEOUT`].
pub(crate) fn send(
    store: &QuotaStore,
    quotas: &[&Quota],
    output: &mut impl Write,
    before_last_changes: impl FnOnce(),
) -> io::Result<usize> {
    let mut sender = Sender {
        store,
        output,
        buffer: Vec::new(),
        deadline: Instant::now().saturating_add(TRANSFER_TIMEOUT),
    };
    sender.begin()?;
    store.mark_all_changed();
    let mut sent = 0;
    for _ in 0..MAX_ROUNDS {
        let changed = sender.send_changed()?;
        sent += changed;
        if changed <= MAX_LAST_BUCKETS {
            break;
        }
    }
    before_last_changes();
    store.hand_over();
    // Each bucket is locked once more: a request that is being counted in it is complete then.
    sent += sender.send_changed()?;
    sender.send_key_counters()?;
    sender.send_sketches(quotas)?;
    sender.send(&Part::End)?;
    sender.output.flush()?;
    Ok(sent)
}

struct Sender<'s, W> {
    store: &'s QuotaStore,
    output: &'s mut W,
    buffer: Vec<u8>,
    deadline: Instant,
}

impl<W: Write> Sender<'_, W> {
    fn begin(&mut self) -> io::Result<()> {
        self.output.write_all(&MAGIC)?;
        self.output.write_all(&VERSION.to_le_bytes())?;
        let hasher = self.store.hasher();
        self.send(&Part::Identity(Identity {
            hasher,
            sample_hash: sample_hash(hasher),
            now: Instant::now(),
        }))
    }

    fn send(&mut self, part: &Part) -> io::Result<()> {
        if Instant::now() > self.deadline {
            return Err(ErrorKind::TimedOut.into());
        }
        self.buffer.clear();
        part.encode(&mut self.buffer);
        self.output.write_all(&self.buffer)
    }

    /// Sends the buckets that have changed since they were sent. Returns their number.
    fn send_changed(&mut self) -> io::Result<usize> {
        let (mut sent, mut slots) = (0, Vec::new());
        for index in 0..BUCKETS {
            self.store.copy_changed(index, Instant::now(), &mut slots);
            if !slots.is_empty() {
                let part = Part::Bucket { index, slots };
                self.send(&part)?;
                sent += 1;
                slots = match part {
                    Part::Bucket { slots, .. } => slots,
                    _ => Vec::new(),
                };
            }
        }
        Ok(sent)
    }

    fn send_key_counters(&mut self) -> io::Result<()> {
        let counters: Vec<_> = self.store.key_limit.counters().collect();
        for chunk in counters.chunks(MAX_KEY_COUNTERS) {
            self.send(&Part::KeyCounters(chunk.to_vec()))?;
        }
        Ok(())
    }

    fn send_sketches(&mut self, quotas: &[&Quota]) -> io::Result<()> {
        let now = Instant::now();
        let copies = quotas.iter().filter_map(|quota| {
            let copy = quota.overflow.copy(now)?;
            Some((quota.id, copy))
        });
        for (quota, copy) in copies.take(MAX_SKETCHES) {
            self.send(&Part::Sketch { quota, copy })?;
        }
        Ok(())
    }
}

/// Receives the counters of another process into `store`, in which nothing has been counted yet. Returns the number of
/// buckets that were received.
///
/// # Errors
/// Returns an error, and leaves no counters, if they are malformed, the input fails, or it takes longer than
/// [`TRANSFER_TIMEOUT`].
pub(crate) fn receive(
    store: &QuotaStore,
    quotas: &[&Quota],
    input: &mut impl Read,
) -> Result<usize, HandOverError> {
    let received = receive_parts(store, quotas, input);
    if received.is_err() {
        store.clear();
        for quota in quotas {
            quota.overflow.clear();
        }
    }
    received
}

fn receive_parts(
    store: &QuotaStore,
    quotas: &[&Quota],
    input: &mut impl Read,
) -> Result<usize, HandOverError> {
    let deadline = Instant::now().saturating_add(TRANSFER_TIMEOUT);
    let mut magic = [0; MAGIC.len()];
    input.read_exact(&mut magic)?;
    if magic != MAGIC {
        return Err(HandOverError::NoCounters);
    }
    let mut version = [0; 2];
    input.read_exact(&mut version)?;
    let version = u16::from_le_bytes(version);
    if version != VERSION {
        return Err(HandOverError::Version(version));
    }
    let mut input = PartReader {
        input,
        rest: Vec::new(),
        received_bytes: 0,
        deadline,
    };
    match input.read()? {
        Part::Identity(identity) => adopt(store, identity)?,
        _ => return Err(HandOverError::NoCounters),
    }
    let quotas: HashMap<_, _> = quotas.iter().map(|quota| (quota.id, *quota)).collect();
    let mut buckets = 0;
    loop {
        match input.read()? {
            Part::Identity(_) => return Err(HandOverError::NoCounters),
            Part::Bucket { index, slots } => {
                store.restore(index, &slots);
                buckets += 1;
            }
            Part::KeyCounters(counters) => {
                for (position, counter) in counters {
                    store.key_limit.set_counter(position, counter);
                }
            }
            Part::Sketch { quota, copy } => {
                if let Some(quota) = quotas.get(&quota) {
                    quota.overflow.restore(copy, Instant::now());
                }
            }
            Part::End => return Ok(buckets),
        }
    }
}

/// Uses the other process's hasher, if hashes and instants mean the same in both processes.
fn adopt(store: &QuotaStore, identity: Identity) -> Result<(), HandOverError> {
    if identity.sample_hash != sample_hash(identity.hasher) {
        return Err(HandOverError::OtherHash);
    }
    let now = Instant::now();
    if now < identity.now || now.since(identity.now) > MAX_CLOCK_DIFFERENCE {
        return Err(HandOverError::OtherClock);
    }
    if !store.adopt_hasher(identity.hasher) {
        return Err(HandOverError::InUse);
    }
    Ok(())
}

struct PartReader<'r, R> {
    input: &'r mut R,
    rest: Vec<u8>,
    received_bytes: usize,
    deadline: Instant,
}

impl<R: Read> PartReader<'_, R> {
    fn read(&mut self) -> Result<Part, HandOverError> {
        if Instant::now() > self.deadline {
            return Err(io::Error::from(ErrorKind::TimedOut).into());
        }
        let mut header = [0; FRAME_HEADER_BYTES];
        self.input.read_exact(&mut header)?;
        let [kind, length @ ..] = header;
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_FRAME_BYTES {
            return Err(HandOverError::TooLong);
        }
        self.received_bytes += FRAME_HEADER_BYTES + length;
        if self.received_bytes > MAX_STREAM_BYTES {
            return Err(HandOverError::TooLong);
        }
        self.rest.resize(length, 0);
        self.input.read_exact(&mut self.rest)?;
        Ok(Part::decode(kind, &self.rest)?)
    }
}

/// Hashes requests that both processes know, with everything that `per` can name.
fn sample_hash(hasher: KeyHasher) -> u64 {
    let name = HeaderName::from_static("x-sample");
    let per = [
        QuotaKeyPart::Client,
        QuotaKeyPart::User,
        QuotaKeyPart::Path,
        QuotaKeyPart::Header(name.clone()),
    ];
    let headers: HeaderMap = [(name, HeaderValue::from_static("value"))]
        .into_iter()
        .collect();
    let client = ClientKey::from_bits(1);
    let hash = |id, user| {
        let sender = QuotaSender { client, user };
        hash_request(hasher, id, &per, sender, "/sample", &headers)
    };
    hash(hash(0, None), Some(UserId(1)))
}
