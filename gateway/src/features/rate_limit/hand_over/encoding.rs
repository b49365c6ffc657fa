//! Format of the counters on their way to a new process.
//!
//! The stream begins with [`MAGIC`] and [`VERSION`]. Frames follow: a kind of one byte, the length of the rest in four,
//! and the rest. All integers are little-endian.

use bytes::{Buf, BufMut, TryGetError};
use thiserror::Error;

use crate::features::rate_limit::algorithm::QuotaState;
use crate::features::rate_limit::count_min_sketch::{SKETCH_COUNTERS, SketchCopy};
use crate::features::rate_limit::key_hasher::KeyHasher;
use crate::features::rate_limit::key_limit::COUNTERS;
use crate::features::rate_limit::store::{BUCKETS, SLOTS_PER_BUCKET, SlotCopy};
use crate::runtime::clock::Instant;

pub(super) const MAGIC: [u8; 8] = *b"GWQUOTAS";
/// Version of the format, and of the meaning of the states and hashes in it. To be changed with any of them.
pub(super) const VERSION: u16 = 1;
pub(super) const FRAME_HEADER_BYTES: usize = 5;
/// Longest rest of a frame: that with the sketches of a rule.
pub(super) const MAX_FRAME_BYTES: usize = 16 + 2 * SKETCH_COUNTERS * size_of::<u32>();
/// Counters of the limit of keys that a frame has at most.
pub(super) const MAX_KEY_COUNTERS: usize = 8192;

const IDENTITY: u8 = 1;
const BUCKET: u8 = 2;
const KEY_COUNTERS: u8 = 3;
const SKETCH: u8 = 4;
const END: u8 = 5;

/// Part of the counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// The first part.
    Identity(Identity),
    /// Slots of a bucket, which replace those that were sent before.
    Bucket { index: usize, slots: Vec<SlotCopy> },
    /// Numbers of keys of clients, each with its position.
    KeyCounters(Vec<(usize, u64)>),
    /// Sketches of the rule with the number `quota`.
    Sketch { quota: u64, copy: SketchCopy },
    /// The last part.
    End,
}

/// Values that have to mean the same in both processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) hasher: KeyHasher,
    /// Hash of a known request: another version of the program, or of the standard library, might hash it differently.
    pub(super) sample_hash: u64,
    pub(super) now: Instant,
}

/// Reason the bytes of a part are malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum InvalidPart {
    #[error("a part of it is incomplete")]
    Incomplete,
    #[error("a part of it is longer than it should be")]
    TooLong,
    #[error("a part of it is of an unknown kind")]
    UnknownKind,
    #[error("it has no bucket, slot or counter of that number")]
    OutOfRange,
    #[error("a state counts more requests than it can")]
    InvalidState,
}

impl From<TryGetError> for InvalidPart {
    fn from(_: TryGetError) -> Self {
        Self::Incomplete
    }
}

impl Part {
    /// Appends the frame of this part.
    pub(super) fn encode(&self, buffer: &mut Vec<u8>) {
        let start = buffer.len();
        buffer.put_u8(self.kind());
        buffer.put_u32_le(0);
        self.encode_rest(buffer);
        let rest = buffer.len() - start - FRAME_HEADER_BYTES;
        let length = u32::try_from(rest).expect("it is at most MAX_FRAME_BYTES");
        buffer[start + 1..start + FRAME_HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Identity(_) => IDENTITY,
            Self::Bucket { .. } => BUCKET,
            Self::KeyCounters(_) => KEY_COUNTERS,
            Self::Sketch { .. } => SKETCH,
            Self::End => END,
        }
    }

    fn encode_rest(&self, buffer: &mut Vec<u8>) {
        match self {
            Self::Identity(identity) => {
                for half in identity.hasher.key {
                    buffer.put_u64_le(half);
                }
                buffer.put_u64_le(identity.sample_hash);
                buffer.put_u64_le(identity.now.0);
            }
            Self::Bucket { index, slots } => {
                buffer.put_u64_le(*index as u64);
                for slot in slots {
                    buffer.put_u64_le(slot.position as u64);
                    buffer.put_u64_le(slot.tag);
                    buffer.put_u64_le(slot.expiry.0);
                    buffer.put_u64_le(slot.state.time);
                    for counter in slot.state.counters {
                        buffer.put_u32_le(counter);
                    }
                }
            }
            Self::KeyCounters(counters) => {
                for (position, counter) in counters {
                    buffer.put_u64_le(*position as u64);
                    buffer.put_u64_le(*counter);
                }
            }
            Self::Sketch { quota, copy } => {
                buffer.put_u64_le(*quota);
                buffer.put_u64_le(copy.window);
                for counter in copy.counters.iter().flatten() {
                    buffer.put_u32_le(*counter);
                }
            }
            Self::End => {}
        }
    }

    /// Parses the rest of a frame.
    ///
    /// # Errors
    /// Returns an error if it is malformed.
    pub(super) fn decode(kind: u8, mut rest: &[u8]) -> Result<Self, InvalidPart> {
        let part = match kind {
            IDENTITY => Self::Identity(Identity {
                hasher: KeyHasher {
                    key: [rest.try_get_u64_le()?, rest.try_get_u64_le()?],
                },
                sample_hash: rest.try_get_u64_le()?,
                now: Instant(rest.try_get_u64_le()?),
            }),
            BUCKET => {
                let index = decode_index(&mut rest, BUCKETS)?;
                let mut slots = Vec::with_capacity(SLOTS_PER_BUCKET);
                while rest.has_remaining() {
                    if slots.len() == SLOTS_PER_BUCKET {
                        return Err(InvalidPart::TooLong);
                    }
                    slots.push(decode_slot(&mut rest)?);
                }
                Self::Bucket { index, slots }
            }
            KEY_COUNTERS => {
                let mut counters = Vec::new();
                while rest.has_remaining() {
                    if counters.len() == MAX_KEY_COUNTERS {
                        return Err(InvalidPart::TooLong);
                    }
                    let position = decode_index(&mut rest, COUNTERS)?;
                    counters.push((position, rest.try_get_u64_le()?));
                }
                Self::KeyCounters(counters)
            }
            SKETCH => Self::Sketch {
                quota: rest.try_get_u64_le()?,
                copy: SketchCopy {
                    window: rest.try_get_u64_le()?,
                    counters: [
                        decode_counters(&mut rest, SKETCH_COUNTERS)?.into(),
                        decode_counters(&mut rest, SKETCH_COUNTERS)?.into(),
                    ],
                },
            },
            END => Self::End,
            _ => return Err(InvalidPart::UnknownKind),
        };
        if rest.has_remaining() {
            return Err(InvalidPart::TooLong);
        }
        Ok(part)
    }
}

fn decode_slot(rest: &mut &[u8]) -> Result<SlotCopy, InvalidPart> {
    let position = decode_index(rest, SLOTS_PER_BUCKET)?;
    let (tag, expiry) = (rest.try_get_u64_le()?, Instant(rest.try_get_u64_le()?));
    let mut state = QuotaState {
        time: rest.try_get_u64_le()?,
        ..QuotaState::default()
    };
    let mut sum: u32 = 0;
    for counter in &mut state.counters {
        *counter = rest.try_get_u32_le()?;
        sum = sum.checked_add(*counter).ok_or(InvalidPart::InvalidState)?;
    }
    Ok(SlotCopy {
        position,
        tag,
        expiry,
        state,
    })
}

fn decode_counters(rest: &mut &[u8], count: usize) -> Result<Vec<u32>, InvalidPart> {
    // Memory is allocated for received values alone.
    if rest.remaining() < count * size_of::<u32>() {
        return Err(InvalidPart::Incomplete);
    }
    (0..count)
        .map(|_| rest.try_get_u32_le().map_err(InvalidPart::from))
        .collect()
}

/// Parses a number that has to be less than `end`.
fn decode_index(rest: &mut &[u8], end: usize) -> Result<usize, InvalidPart> {
    let index = usize::try_from(rest.try_get_u64_le()?);
    index
        .ok()
        .filter(|index| *index < end)
        .ok_or(InvalidPart::OutOfRange)
}
