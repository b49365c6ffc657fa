//! History of a run, and the checker of its invariants.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use super::process::{EndedByAccount, GATEWAY_ENTRY_LIFETIME, Role};
use crate::ids::{SessionId, UserId};

/// Result of a check of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    Accepted(CheckSource),
    Rejected,
}

/// What an accepted token was found in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CheckSource {
    ReplicaCache,
    Store,
    GatewayCache,
    /// A replica told the gateway.
    Verified,
}

/// Place in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment {
    time: Duration,
    number: u64,
}

/// Numbers of events by name.
pub(super) type Counts = BTreeMap<&'static str, u64>;

#[derive(Debug, Default)]
pub(super) struct History {
    /// Texts of events, if they are recorded.
    events: Option<String>,
    next_number: u64,
    sessions: BTreeMap<[u8; 16], SessionRecord>,
    counts: Counts,
    violations: Vec<String>,
}

#[derive(Debug)]
struct SessionRecord {
    user: UserId,
    is_logged_in: bool,
    /// First acknowledgement of its end in the store of sessions that no failover has lost.
    ended: Option<Moment>,
    /// First acknowledgement of its end by the account, at replicas and at gateways.
    ended_at_replicas: Option<Moment>,
    ended_at_gateways: Option<Moment>,
    /// Incarnation of the store in which it was last restored.
    restored_in: u64,
    /// Changes of the password that are under way in it, and the last one that ended.
    password_changes: u32,
    last_password_change: Option<Moment>,
}

/// Returns the name of a session in the history.
pub(super) fn name(session: SessionId) -> String {
    format!("session {}", u128::from_be_bytes(*session.as_bytes()))
}

impl History {
    pub(super) fn recorded() -> Self {
        Self {
            events: Some(String::new()),
            ..Self::default()
        }
    }

    /// Adds an event, whose text is only made if it is recorded.
    pub(super) fn note(&mut self, time: Duration, text: impl FnOnce() -> String) {
        if let Some(events) = &mut self.events {
            let (seconds, micros) = (time.as_secs(), time.subsec_micros());
            let _ = writeln!(events, "{seconds:3}.{micros:06} {}", text());
        }
    }

    pub(super) fn count(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }

    /// Returns the moment after all others up to now.
    pub(super) fn moment(&mut self, time: Duration) -> Moment {
        let number = self.next_number;
        self.next_number += 1;
        Moment { time, number }
    }

    pub(super) fn violate(&mut self, time: Duration, violation: String) {
        self.note(time, || format!("VIOLATION: {violation}"));
        self.violations.push(violation);
    }

    pub(super) fn created(&mut self, session: SessionId, user: UserId) {
        let record = SessionRecord {
            user,
            is_logged_in: false,
            ended: None,
            ended_at_replicas: None,
            ended_at_gateways: None,
            restored_in: 0,
            password_changes: 0,
            last_password_change: None,
        };
        self.sessions.insert(*session.as_bytes(), record);
    }

    fn record(&mut self, session: SessionId) -> &mut SessionRecord {
        let record = self.sessions.get_mut(session.as_bytes());
        record.expect("the session was created")
    }

    pub(super) fn logged_in(&mut self, session: SessionId) {
        self.record(session).is_logged_in = true;
    }

    pub(super) fn user_of(&mut self, session: SessionId) -> UserId {
        self.record(session).user
    }

    /// Returns the sessions of a user whose tokens a client has.
    pub(super) fn sessions_of(&self, user: UserId) -> Vec<SessionId> {
        self.sessions
            .iter()
            .filter(|(_, record)| record.user == user && record.is_logged_in)
            .map(|(id, _)| SessionId::from_bytes(*id))
            .collect()
    }

    /// Records that the end of a session was acknowledged, which the store did in an incarnation.
    pub(super) fn ended(&mut self, session: SessionId, incarnation: u64, time: Duration) {
        let moment = self.moment(time);
        let record = self.record(session);
        // A failover that lost the end since has restored the session.
        if record.restored_in <= incarnation {
            record.ended.get_or_insert(moment);
        }
    }

    /// Records that a change of the password begins in a session.
    pub(super) fn password_change_began(&mut self, session: SessionId) {
        self.record(session).password_changes += 1;
    }

    pub(super) fn password_change_ended(&mut self, session: SessionId, time: Duration) {
        let moment = self.moment(time);
        let record = self.record(session);
        record.password_changes -= 1;
        record.last_password_change = Some(moment);
    }

    /// Returns whether a change of the password was under way in a session at `began` or later. It verifies the password,
    /// so it counts as a login after an end of all sessions that began then.
    pub(super) fn is_kept_since(&mut self, session: SessionId, began: Moment) -> bool {
        let record = self.record(session);
        record.password_changes > 0 || record.last_password_change.is_some_and(|last| last > began)
    }

    /// Records that the end of sessions by their account was acknowledged.
    pub(super) fn ended_by_account(
        &mut self,
        sessions: &[SessionId],
        extent: EndedByAccount,
        time: Duration,
    ) {
        let moment = self.moment(time);
        let at_gateways = match extent {
            EndedByAccount::Everywhere => moment,
            EndedByAccount::AtReplicas => Moment {
                time: time + GATEWAY_ENTRY_LIFETIME,
                ..moment
            },
        };
        for session in sessions {
            let record = self.record(*session);
            record.ended_at_replicas.get_or_insert(moment);
            let earlier = record.ended_at_gateways.unwrap_or(at_gateways);
            record.ended_at_gateways = Some(earlier.min(at_gateways));
        }
    }

    /// Records that a failover lost the end of a session in the store, which is stated in `docs/operations.md`.
    pub(super) fn restored(&mut self, session: SessionId, incarnation: u64) {
        self.count("ends lost in failovers");
        let record = self.record(session);
        record.ended = None;
        record.restored_in = incarnation;
    }

    /// Checks the main invariant for an accepted token.
    pub(super) fn accepted(
        &mut self,
        session: SessionId,
        role: Role,
        began: Moment,
        time: Duration,
        text: impl FnOnce() -> String,
    ) {
        let record = self.record(session);
        let by_account = match role {
            Role::Replica => record.ended_at_replicas,
            Role::Gateway => record.ended_at_gateways,
        };
        let ended = [record.ended, by_account].into_iter().flatten().min();
        if let Some(ended) = ended.filter(|ended| *ended < began) {
            let violation = format!(
                "{} that began at {:?} is after its end was acknowledged at {:?}",
                text(),
                began.time,
                ended.time
            );
            self.violate(time, violation);
        }
    }

    pub(super) fn into_parts(self) -> (Counts, Vec<String>, String) {
        let events = self.events.unwrap_or_default();
        (self.counts, self.violations, events)
    }
}
