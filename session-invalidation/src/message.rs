//! Messages that participants exchange over Redis pub/sub, and their channels.
//!
//! Programs of different versions run side by side during an upgrade, so the texts do not change.

use std::time::Duration;

use uuid::Uuid;

use crate::ids::{SessionId, UserId};

/// Channel of invalidations: `{channel for acknowledgements} {number} {session id, user:id or user:*}`.
pub const INVALIDATION_CHANNEL: &str = "sessions:ended";
/// Place of the user's id in an invalidation of all sessions. Versions that do not know it clear their caches, as for
/// any unknown message, and do not acknowledge it.
const EVERY_USER: &str = "*";
/// Header of an invalidation that is not acknowledged.
pub const UNACKNOWLEDGED_HEADER: &str = "nobody 0";
/// Channel of heartbeats: `{channel for acknowledgements} {nanoseconds on the sender's clock}`.
pub(crate) const HEARTBEAT_CHANNEL: &str = "sessions:alive";
/// Key, which does not exist, of the write by which a participant finds out that the server is the primary. It is none of the
/// keys of sessions, whose last part is a number.
pub(crate) const PRIMARY_KEY: &str = "sessions:primary";
/// Prefix of each participant's channel for acknowledgements: `{number} {channel of the acknowledging participant}`.
const ACKNOWLEDGEMENT_CHANNEL_PREFIX: &str = "sessions:heard:";

/// Identifier of a process that caches sessions, chosen at random when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ParticipantId(Uuid);

/// Parsed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    Invalidation {
        /// `None` if the sender does not wait for an acknowledgement.
        sender: Option<ParticipantId>,
        number: u64,
        invalidated: Invalidated,
    },
    Heartbeat {
        sender: ParticipantId,
        sent: Duration,
    },
    Acknowledgement {
        sender: ParticipantId,
        number: u64,
    },
}

/// Sessions that an invalidation concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Invalidated {
    Session(SessionId),
    SessionsOf(UserId),
    AllSessions,
}

impl ParticipantId {
    pub(crate) fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Returns the channel on which the participant receives acknowledgements.
    pub(crate) fn channel(self) -> String {
        format!("{ACKNOWLEDGEMENT_CHANNEL_PREFIX}{}", self.0.simple())
    }

    fn from_channel(channel: &str) -> Option<Self> {
        let id = channel.strip_prefix(ACKNOWLEDGEMENT_CHANNEL_PREFIX)?;
        Uuid::try_parse(id).ok().map(Self)
    }
}

impl Message {
    /// Parses the text of a message that was received on `channel`.
    pub(crate) fn parse(channel: &str, text: &str) -> Option<Self> {
        let words: Vec<_> = text.split(' ').collect();
        match (channel, &words[..]) {
            (INVALIDATION_CHANNEL, [sender, number, invalidated]) => Some(Self::Invalidation {
                sender: ParticipantId::from_channel(sender),
                number: number.parse().ok()?,
                invalidated: Invalidated::parse(invalidated)?,
            }),
            (HEARTBEAT_CHANNEL, [sender, sent]) => Some(Self::Heartbeat {
                sender: ParticipantId::from_channel(sender)?,
                sent: Duration::from_nanos(sent.parse().ok()?),
            }),
            (_, [number, sender]) => Some(Self::Acknowledgement {
                sender: ParticipantId::from_channel(sender)?,
                number: number.parse().ok()?,
            }),
            _ => None,
        }
    }
}

impl Invalidated {
    fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("user:") {
            Some(EVERY_USER) => Some(Self::AllSessions),
            Some(user) => Some(Self::SessionsOf(UserId(user.parse().ok()?))),
            None => SessionId::parse(text).map(Self::Session),
        }
    }
}

/// Returns the part of an invalidation that precedes the invalidated sessions.
pub(crate) fn invalidation_header(sender: ParticipantId, number: u64) -> String {
    format!("{} {number}", sender.channel())
}

/// Returns the text of an invalidation of one session.
pub(crate) fn invalidation_of(sender: ParticipantId, number: u64, session: SessionId) -> String {
    format!("{} {session}", invalidation_header(sender, number))
}

/// Returns the text of an invalidation of all sessions.
pub(crate) fn invalidation_of_all(sender: ParticipantId, number: u64) -> String {
    format!("{} user:{EVERY_USER}", invalidation_header(sender, number))
}

/// Returns the text of a heartbeat.
pub(crate) fn heartbeat(sender: ParticipantId, sent: Duration) -> String {
    format!("{} {}", sender.channel(), sent.as_nanos())
}

/// Returns the text of an acknowledgement.
pub(crate) fn acknowledgement(sender: ParticipantId, number: u64) -> String {
    format!("{number} {}", sender.channel())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_texts_that_other_versions_understand() {
        let sender = ParticipantId(Uuid::from_u128(0xab));
        let channel = "sessions:heard:000000000000000000000000000000ab";
        assert_eq!(sender.channel(), channel);
        let session = SessionId::from_bytes([0x11; 16]);
        let text = "11111111111111111111111111111111";
        let invalidation = |sender, invalidated| Message::Invalidation {
            sender,
            number: 5,
            invalidated,
        };
        let by_sender = |invalidated| invalidation(Some(sender), invalidated);
        let header = invalidation_header(sender, 5);
        for (channel, text, expected) in [
            (
                INVALIDATION_CHANNEL,
                format!("{header} {text}"),
                by_sender(Invalidated::Session(session)),
            ),
            (
                INVALIDATION_CHANNEL,
                format!("{header} user:7"),
                by_sender(Invalidated::SessionsOf(UserId(7))),
            ),
            (
                INVALIDATION_CHANNEL,
                invalidation_of_all(sender, 5),
                by_sender(Invalidated::AllSessions),
            ),
            (
                INVALIDATION_CHANNEL,
                "nobody 5 user:7".to_owned(),
                invalidation(None, Invalidated::SessionsOf(UserId(7))),
            ),
            (
                HEARTBEAT_CHANNEL,
                heartbeat(sender, Duration::from_nanos(9)),
                Message::Heartbeat {
                    sender,
                    sent: Duration::from_nanos(9),
                },
            ),
            (
                channel,
                acknowledgement(sender, 5),
                Message::Acknowledgement { sender, number: 5 },
            ),
        ] {
            assert_eq!(Message::parse(channel, &text), Some(expected), "{text}");
        }
        for unknown in [
            "",
            "hello",
            "nobody 5 x",
            "nobody x user:7",
            "nobody 5 user:",
        ] {
            assert_eq!(
                Message::parse(INVALIDATION_CHANNEL, unknown),
                None,
                "{unknown}"
            );
        }
    }
}
