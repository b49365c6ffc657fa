//! Messages that replicas exchange over Redis pub/sub, and their channels.
//!
//! Replicas of different versions run side by side during an upgrade, so the texts do not change.

use std::time::Duration;

use uuid::Uuid;

use crate::domain::principal::SessionId;
use crate::domain::user::UserId;

/// Channel of invalidations: `{channel for acknowledgements} {number} {session id or user:id}`.
pub(crate) const INVALIDATION_CHANNEL: &str = "sessions:ended";
/// Header of an invalidation that is not acknowledged.
pub(crate) const UNACKNOWLEDGED_HEADER: &str = "nobody 0";
/// Channel of heartbeats: `{channel for acknowledgements} {nanoseconds on the sender's clock}`.
pub(super) const HEARTBEAT_CHANNEL: &str = "sessions:alive";
/// Prefix of each replica's channel for acknowledgements: `{number} {channel of the acknowledging replica}`.
const ACKNOWLEDGEMENT_CHANNEL_PREFIX: &str = "sessions:heard:";

/// Identifier of a process that caches sessions, chosen at random when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ReplicaId(Uuid);

/// Parsed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    Invalidation {
        /// `None` if the sender does not wait for an acknowledgement.
        sender: Option<ReplicaId>,
        number: u64,
        invalidated: Invalidated,
    },
    Heartbeat {
        sender: ReplicaId,
        sent: Duration,
    },
    Acknowledgement {
        sender: ReplicaId,
        number: u64,
    },
}

/// Sessions that an invalidation concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Invalidated {
    Session(SessionId),
    SessionsOf(UserId),
}

impl ReplicaId {
    pub(super) fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Returns the channel on which the replica receives acknowledgements.
    pub(super) fn channel(self) -> String {
        format!("{ACKNOWLEDGEMENT_CHANNEL_PREFIX}{}", self.0.simple())
    }

    fn from_channel(channel: &str) -> Option<Self> {
        let id = channel.strip_prefix(ACKNOWLEDGEMENT_CHANNEL_PREFIX)?;
        Uuid::try_parse(id).ok().map(Self)
    }
}

impl Message {
    /// Parses the text of a message that was received on `channel`.
    pub(super) fn parse(channel: &str, text: &str) -> Option<Self> {
        let words: Vec<_> = text.split(' ').collect();
        match (channel, &words[..]) {
            (INVALIDATION_CHANNEL, [sender, number, invalidated]) => Some(Self::Invalidation {
                sender: ReplicaId::from_channel(sender),
                number: number.parse().ok()?,
                invalidated: Invalidated::parse(invalidated)?,
            }),
            (HEARTBEAT_CHANNEL, [sender, sent]) => Some(Self::Heartbeat {
                sender: ReplicaId::from_channel(sender)?,
                sent: Duration::from_nanos(sent.parse().ok()?),
            }),
            (_, [number, sender]) => Some(Self::Acknowledgement {
                sender: ReplicaId::from_channel(sender)?,
                number: number.parse().ok()?,
            }),
            _ => None,
        }
    }
}

impl Invalidated {
    fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("user:") {
            Some(user) => Some(Self::SessionsOf(UserId(user.parse().ok()?))),
            None => SessionId::parse(text).map(Self::Session),
        }
    }
}

/// Returns the part of an invalidation that precedes the invalidated sessions.
pub(super) fn invalidation_header(sender: ReplicaId, number: u64) -> String {
    format!("{} {number}", sender.channel())
}

/// Returns the text of a heartbeat.
pub(super) fn heartbeat(sender: ReplicaId, sent: Duration) -> String {
    format!("{} {}", sender.channel(), sent.as_nanos())
}

/// Returns the text of an acknowledgement.
pub(super) fn acknowledgement(sender: ReplicaId, number: u64) -> String {
    format!("{number} {}", sender.channel())
}
