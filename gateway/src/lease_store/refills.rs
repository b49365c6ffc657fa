//! Sending of the commands that requests cause, and return of what leases have left.

use std::time::Duration;

use fred::error::{Error as RedisError, ErrorKind};
use fred::interfaces::{ClientLike, LuaInterface};
use fred::types::Value;
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use tokio::time::{MissedTickBehavior, interval};

use super::scripts;
use super::store_link::StoreLink;
use crate::features::rate_limit::shared::{ScriptArguments, StoreCommand};
use crate::runtime::clock::Instant;

/// Version of what the scripts store. Gateways of two versions count apart: their scripts never meet the state of the other.
const FORMAT: u32 = 2;
/// Commands that are sent together.
const MAX_BATCH: usize = 256;
/// Such batches that may wait for replies. Each waits no longer than the time limit of a command.
const MAX_BATCHES_IN_FLIGHT: usize = 32;
/// Interval at which leases are searched for units that nothing uses.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// Sender of the commands of this gateway.
#[derive(Debug)]
pub(super) struct Refills<'s>(pub(super) StoreLink<'s>);

impl Refills<'_> {
    /// Sends commands without end.
    pub(super) async fn run(&self) {
        let mut queue = self.0.quotas.queue().await;
        let mut in_flight = FuturesUnordered::new();
        let mut sweep = interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(MAX_BATCH);
        loop {
            tokio::select! {
                _ = queue.recv_many(&mut batch, MAX_BATCH), if in_flight.len() < MAX_BATCHES_IN_FLIGHT => {
                    in_flight.push(self.send(std::mem::take(&mut batch)));
                }
                Some(()) = in_flight.next() => {}
                _ = sweep.tick() => self.0.quotas.return_idle(Instant::now()),
            }
        }
    }

    /// Sends commands together and applies the replies. Commands are dropped that the store does not reply
    /// to: their requests go on without a lease.
    async fn send(&self, commands: Vec<StoreCommand>) {
        if !self.0.connection.client.is_connected() {
            self.0
                .quotas
                .metrics
                .failed_commands
                .inc_by(commands.len() as u64);
            return;
        }
        let arguments: Vec<_> = commands
            .iter()
            .map(|command| ScriptArguments::new(command, self.0.quotas.gateways()))
            .collect();
        let sent = Instant::now();
        let mut replies = self.execute(&commands, &arguments).await;
        if replies.iter().any(is_unknown_script) {
            replies = self
                .execute_with_reload(&commands, &arguments, replies)
                .await;
        }
        let received = Instant::now();
        for ((command, arguments), reply) in commands.iter().zip(&arguments).zip(replies) {
            match reply {
                Ok(value) => self.apply(command, arguments, value, sent, received),
                Err(error) => self.record_failure(&error),
            }
        }
    }

    fn apply(
        &self,
        command: &StoreCommand,
        arguments: &ScriptArguments,
        value: Value,
        sent: Instant,
        received: Instant,
    ) {
        let Some(reply) = scripts::parse_reply(value) else {
            self.0.quotas.metrics.failed_commands.inc();
            return;
        };
        self.0.quotas.metrics.commands.inc();
        self.0
            .quotas
            .metrics
            .returned_units
            .inc_by(arguments.returned().into());
        if command.is_refill() {
            let grant = reply.to_grant(arguments, sent, received);
            self.0.quotas.apply(command, &grant);
        }
    }

    /// Sends the commands without waiting in between, and waits for all replies.
    async fn execute(
        &self,
        commands: &[StoreCommand],
        arguments: &[ScriptArguments],
    ) -> Vec<Result<Value, RedisError>> {
        let replies = commands.iter().zip(arguments).map(|(command, arguments)| {
            let key = format!(
                "{}:quota:{FORMAT}:{}",
                self.0.keyspace,
                command.key.to_hex()
            );
            let hash = scripts::of(command.terms).sha1().clone();
            let client = &self.0.connection.client;
            client.evalsha(hash, vec![key], scripts::to_values(arguments))
        });
        join_all(replies).await
    }

    /// Loads the scripts and sends those commands again that were not executed because the store did not know
    /// the script.
    async fn execute_with_reload(
        &self,
        commands: &[StoreCommand],
        arguments: &[ScriptArguments],
        mut replies: Vec<Result<Value, RedisError>>,
    ) -> Vec<Result<Value, RedisError>> {
        for script in scripts::all() {
            if script.load(&self.0.connection.client).await.is_err() {
                return replies;
            }
        }
        for (index, reply) in replies.iter_mut().enumerate() {
            if is_unknown_script(reply) {
                let again = index..=index;
                let again = self
                    .execute(&commands[again.clone()], &arguments[again])
                    .await;
                if let Some(again) = again.into_iter().next() {
                    *reply = again;
                }
            }
        }
        replies
    }

    fn record_failure(&self, error: &RedisError) {
        self.0.quotas.metrics.failed_commands.inc();
        // The next heartbeat notices other reasons.
        if matches!(error.kind(), ErrorKind::IO | ErrorKind::Canceled) {
            self.0.record_failure(error);
        } else {
            tracing::debug!(%error, "quota store command failed");
        }
    }
}

fn is_unknown_script(reply: &Result<Value, RedisError>) -> bool {
    reply
        .as_ref()
        .is_err_and(|error| error.details().contains("NOSCRIPT"))
}
