//! Steps of a case: operations of users and operators, time and restarts, in random order.

use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;

use crate::model::{TIME_UNIT, User};

pub(crate) const REPLICAS: usize = 2;

/// Position from the end, modulo the number of items: 0 is the latest.
pub(crate) type Recent = usize;

/// Password that a user presents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presented {
    Current,
    /// The one before the last change.
    Old,
}

/// An access token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Actor {
    pub(crate) session: Recent,
    pub(crate) token: Recent,
}

/// A command of an operator about one account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Disable,
    Enable,
    SetPassword,
    EndSessions,
    Delete,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Stop {
    Terminate,
    Kill,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Operation {
    Register(User),
    LogIn(User, Presented),
    Refresh { session: Recent, token: Recent },
    LogOut(Actor),
    LogOutEverywhere(Actor),
    EndSession { by: Actor, session: Recent },
    ChangePassword(Actor, Presented),
    DeleteAccount(User, Presented),
    RevokeAccessToken(Actor),
    RevokeRefreshToken { session: Recent, token: Recent },
    Command(User, Command),
    EndAllSessions,
    Pass(Duration),
    Restart(Stop),
}

/// An operation at a replica.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) replica: usize,
    pub(crate) operation: Operation,
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let user = || 0..2_usize;
    let session = || 0..4_usize;
    // Mostly the latest ones: older ones are all rejected.
    let token = || prop_oneof![5 => Just(0), 3 => Just(1), 2 => Just(2), 1 => 3..8_usize];
    let actor = || (session(), token()).prop_map(|(session, token)| Actor { session, token });
    let password = || prop_oneof![5 => Just(Presented::Current), 1 => Just(Presented::Old)];
    let command = select(vec![
        Command::Disable,
        Command::Enable,
        Command::Enable,
        Command::SetPassword,
        Command::EndSessions,
        Command::Delete,
    ]);
    let operation = prop_oneof![
        3 => user().prop_map(Operation::Register),
        12 => (user(), password()).prop_map(|(user, password)| Operation::LogIn(user, password)),
        24 => (session(), token()).prop_map(|(session, token)| Operation::Refresh { session, token }),
        2 => actor().prop_map(Operation::LogOut),
        2 => actor().prop_map(Operation::LogOutEverywhere),
        3 => (actor(), session()).prop_map(|(by, session)| Operation::EndSession { by, session }),
        4 => (actor(), password()).prop_map(|(actor, password)| Operation::ChangePassword(actor, password)),
        1 => (user(), password()).prop_map(|(user, password)| Operation::DeleteAccount(user, password)),
        1 => actor().prop_map(Operation::RevokeAccessToken),
        1 => (session(), token()).prop_map(|(session, token)| Operation::RevokeRefreshToken { session, token }),
        3 => (user(), command).prop_map(|(user, command)| Operation::Command(user, command)),
        1 => Just(Operation::EndAllSessions),
        10 => prop_oneof![6 => 1..3_u32, 2 => Just(18), 1 => Just(36)].prop_map(|units| Operation::Pass(TIME_UNIT * units)),
        2 => select(vec![Stop::Terminate, Stop::Kill]).prop_map(Operation::Restart),
    ];
    (0..REPLICAS, operation).prop_map(|(replica, operation)| Step { replica, operation })
}
