//! Hand-over of the counters to a new process at an upgrade, so that it resets no quota.
//!
//! A live migration with pre-copying (Theimer, Lantz and Cheriton 1985): the old process [sends](transfer) its tables
//! while it goes on counting, then what has changed meanwhile. From one instant on it counts nothing, sends the last
//! changes, and [asks the new process](remote) about each further request until it ends. So every request is counted
//! in one place at each instant. Invariant: old and new process together let no more than a quota through. What breaks it:
//! a new process that does not respond, and rules that it does not have; both are then counted by the old process alone,
//! from where it was.
//!
//! Keys are hashed with a random key, which is handed over first; instants mean the same in all processes of a machine.
//! A state is found by the hash of its rule: a new process with other rules has no use for theirs, and they expire.
//!
//! Bytes from the other process are not trusted to be well-formed: a stream that is malformed, of another version of the
//! [format](encoding), too long or too slow leaves the new process with empty counters.

mod encoding;
pub(crate) mod remote;
#[cfg(test)]
mod tests;
pub(crate) mod transfer;
