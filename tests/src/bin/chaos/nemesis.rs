//! Nemesis: causes faults, one or two at the same time, ends them, and waits until the deployment is healthy.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::history::{GatewayId, Span, Time};
use crate::network::Direction;
use crate::node::NodeId;
use crate::random::Random;
use crate::redis_status;
use crate::run::Run;

/// Longest time until the deployment is healthy after a fault: as long as a failover by Sentinel and the start of all
/// programs may take on a busy machine.
const RECOVERY_TIMEOUT: Duration = Duration::from_mins(1);
/// Longest failover by Sentinel.
const FAILOVER_TIMEOUT: Duration = Duration::from_secs(40);
/// Time for which clients of a gateway may notice a fault that has ended: requests have queued, and packets are sent
/// again only later.
const GATEWAY_RECOVERY: Duration = Duration::from_secs(3);
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// More than a small disk has.
const MAX_FILLER: usize = 1 << 30;

/// Kind of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    Pause,
    Kill,
    CutOff,
    CutLink,
    LosePackets,
    FillDisk,
    StepClock,
    FailOverRedis,
    FailOverPostgres,
    Reload,
    Upgrade,
    Roll,
    /// Two primaries of Redis serve clients.
    DivideRedis,
}

impl FaultKind {
    pub(crate) const ALL: [Self; 13] = [
        Self::Pause,
        Self::Kill,
        Self::CutOff,
        Self::CutLink,
        Self::LosePackets,
        Self::FillDisk,
        Self::StepClock,
        Self::FailOverRedis,
        Self::FailOverPostgres,
        Self::Reload,
        Self::Upgrade,
        Self::Roll,
        Self::DivideRedis,
    ];

    /// Name on the command line and in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Kill => "kill",
            Self::CutOff => "cut-off",
            Self::CutLink => "cut-link",
            Self::LosePackets => "lose-packets",
            Self::FillDisk => "fill-disk",
            Self::StepClock => "step-clock",
            Self::FailOverRedis => "fail-over-redis",
            Self::FailOverPostgres => "fail-over-postgres",
            Self::Reload => "reload",
            Self::Upgrade => "upgrade",
            Self::Roll => "roll",
            Self::DivideRedis => "divide-redis",
        }
    }
}

/// Way in which the primary of Redis fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RedisFailure {
    Killed,
    /// It goes on after another one has been promoted.
    Paused,
    /// It is cut off from Sentinels and replicas, and not from its clients.
    Isolated,
    /// The same, and a replica of auth-api that is started again meanwhile uses the new one.
    Divided,
}

/// A fault with its parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Pause(NodeId),
    Kill(NodeId),
    CutOff(NodeId, Direction),
    /// From its peers of one kind.
    CutLink(NodeId, NodeKind, Direction),
    LosePackets(NodeId, f64),
    FillDisk(NodeId),
    StepClock(i64),
    FailOverRedis(RedisFailure),
    FailOverPostgres,
    Reload(NodeId),
    Upgrade(NodeId),
    Roll,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NodeKind {
    AuthApi,
    Postgres,
    Redis,
    Sentinel,
}

impl NodeKind {
    fn nodes(self) -> Vec<NodeId> {
        let is_of_kind = |id: &NodeId| match id {
            NodeId::Gateway(_) => false,
            NodeId::AuthApi(_) => self == Self::AuthApi,
            NodeId::Postgres(_) => self == Self::Postgres,
            NodeId::Redis(_) => self == Self::Redis,
            NodeId::Sentinel(_) => self == Self::Sentinel,
        };
        NodeId::all().filter(is_of_kind).collect()
    }
}

impl Fault {
    /// Returns the gateway whose clients notice the fault by itself, not by what is behind it.
    fn gateway(self) -> Option<GatewayId> {
        match self {
            Self::Pause(node)
            | Self::Kill(node)
            | Self::CutOff(node, _)
            | Self::LosePackets(node, _) => node.gateway(),
            _ => None,
        }
    }

    /// Returns true if both may be caused at the same time: each concerns another program, and no store loses both
    /// of its servers.
    fn may_meet(self, other: Self) -> bool {
        let store = |fault: Self| match fault {
            Self::Pause(node)
            | Self::Kill(node)
            | Self::CutOff(node, _)
            | Self::LosePackets(node, _)
            | Self::FillDisk(node) => match node {
                NodeId::Postgres(_) => Some(NodeKind::Postgres),
                NodeId::Redis(_) | NodeId::Sentinel(_) => Some(NodeKind::Redis),
                _ => None,
            },
            Self::FailOverRedis(_) => Some(NodeKind::Redis),
            Self::FailOverPostgres => Some(NodeKind::Postgres),
            _ => None,
        };
        let node = |fault: Self| match fault {
            Self::Pause(node)
            | Self::Kill(node)
            | Self::CutOff(node, _)
            | Self::CutLink(node, ..)
            | Self::LosePackets(node, _)
            | Self::FillDisk(node)
            | Self::Reload(node)
            | Self::Upgrade(node) => Some(node),
            _ => None,
        };
        let is_roll = |fault| fault == Self::Roll;
        let is_auth_api = |fault| matches!(node(fault), Some(NodeId::AuthApi(_)));
        let is_upgrade = |fault| matches!(fault, Self::Upgrade(_) | Self::Reload(_));
        let share_store = store(self).is_some() && store(self) == store(other);
        let share_node = node(self).is_some() && node(self) == node(other);
        !share_store
            && !share_node
            && !(is_roll(self) && (is_auth_api(other) || is_roll(other)))
            && !(is_roll(other) && is_auth_api(self))
            && !(is_upgrade(self) && is_upgrade(other))
    }
}

/// A fault that has ended.
#[derive(Debug, Clone)]
pub(crate) struct FaultRecord {
    pub(crate) kind: FaultKind,
    pub(crate) description: String,
    /// From its begin until the deployment was healthy again.
    pub(crate) span: Span,
    /// Time from its end until the deployment was healthy again.
    pub(crate) recovery: Duration,
}

impl fmt::Display for FaultRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.span.from.as_secs_f64(), self.span.to.as_secs_f64());
        write!(
            f,
            "{from:10.4} {to:10.4} {}, healthy after {:.1?}",
            self.description, self.recovery
        )
    }
}

/// The cause of all faults.
pub(crate) struct Nemesis {
    run: Arc<Run>,
    random: Random,
    kinds: Vec<FaultKind>,
}

impl Nemesis {
    pub(crate) fn new(run: Arc<Run>, random: Random, kinds: Vec<FaultKind>) -> Self {
        Self { run, random, kinds }
    }

    /// Causes faults until the run ends. A deployment that does not recover is a violation.
    pub(crate) async fn torment(mut self) {
        while !self.run.is_over() {
            sleep(self.random.milliseconds(500..3000)).await;
            let kind = self.random.choose(&self.kinds);
            let mut faults = vec![(kind, self.choose(kind))];
            if self.random.chance(30) {
                let kind = self.random.choose(&self.kinds);
                let fault = self.choose(kind);
                if fault.may_meet(faults[0].1) {
                    faults.push((kind, fault));
                }
            }
            self.cause(&faults).await;
        }
    }

    async fn cause(&mut self, faults: &[(FaultKind, Fault)]) {
        let from = self.run.now();
        let tasks: Vec<_> = faults
            .iter()
            .map(|&(_, fault)| {
                let (run, random) = (Arc::clone(&self.run), self.random.split());
                tokio::spawn(async move { (fault, inject(&run, random, fault).await) })
            })
            .collect();
        for task in tasks {
            match task.await {
                Ok((_, Ok(()))) => {}
                Ok((fault, Err(error))) => {
                    let text = format!("{fault:?} could not be carried out: {error:#}");
                    self.run.record_violation(text);
                }
                Err(error) => self.run.record_violation(format!("{error}")),
            }
        }
        let ended = self.run.now();
        if let Err(error) = self
            .run
            .deployment
            .wait_until_healthy(RECOVERY_TIMEOUT)
            .await
        {
            let text = format!("the deployment does not recover from {faults:?}: {error:#}");
            self.run.record_violation(text);
        }
        let to = self.run.now();
        for crash in self.run.deployment.take_crashes() {
            self.run
                .record_violation(format!("{crash}, during {faults:?}"));
        }
        for (kind, fault) in faults {
            self.run.record_fault(FaultRecord {
                kind: *kind,
                description: format!("{fault:?}"),
                span: Span { from, to },
                recovery: to.saturating_sub(ended),
            });
        }
    }

    fn choose(&mut self, kind: FaultKind) -> Fault {
        let nodes: Vec<_> = NodeId::all().collect();
        let random = &mut self.random;
        let directions = [
            Direction::Both,
            Direction::Both,
            Direction::Incoming,
            Direction::Outgoing,
        ];
        let gateway = random.choose(&[NodeId::Gateway(0), NodeId::Gateway(1)]);
        match kind {
            FaultKind::Pause => Fault::Pause(random.choose(&nodes)),
            FaultKind::Kill => Fault::Kill(random.choose(&nodes)),
            FaultKind::CutOff => Fault::CutOff(random.choose(&nodes), random.choose(&directions)),
            FaultKind::CutLink => {
                let ours: Vec<_> = nodes.into_iter().filter(|node| node.is_ours()).collect();
                let node = random.choose(&ours);
                let peers: &[NodeKind] = match node {
                    NodeId::Gateway(_) => &[NodeKind::AuthApi, NodeKind::Redis, NodeKind::Sentinel],
                    _ => &[NodeKind::Postgres, NodeKind::Redis, NodeKind::Sentinel],
                };
                Fault::CutLink(node, random.choose(peers), random.choose(&directions))
            }
            FaultKind::LosePackets => {
                Fault::LosePackets(random.choose(&nodes), random.choose(&[0.1, 0.2, 0.3]))
            }
            FaultKind::FillDisk => {
                let primary = self.run.deployment.postgres_primary();
                let standby = self.run.deployment.postgres_standby();
                let mut stores = vec![primary, standby];
                stores.extend(redis_status::SERVERS);
                Fault::FillDisk(random.choose(&stores))
            }
            // Clocks of replicas may differ by 30 seconds.
            FaultKind::StepClock => Fault::StepClock(random.choose(&[-25, -10, 10, 25])),
            FaultKind::FailOverRedis => Fault::FailOverRedis(random.choose(&[
                RedisFailure::Killed,
                RedisFailure::Paused,
                RedisFailure::Isolated,
            ])),
            FaultKind::DivideRedis => Fault::FailOverRedis(RedisFailure::Divided),
            FaultKind::FailOverPostgres => Fault::FailOverPostgres,
            FaultKind::Reload => Fault::Reload(gateway),
            FaultKind::Upgrade => Fault::Upgrade(gateway),
            FaultKind::Roll => Fault::Roll,
        }
    }
}

/// Causes a fault and ends it.
async fn inject(run: &Run, mut random: Random, fault: Fault) -> Result<()> {
    let from = run.now();
    let result = inject_and_end(run, &mut random, fault).await;
    if let Some(gateway) = fault.gateway() {
        record_gateway_fault(run, gateway, from);
    }
    result
}

/// Records that clients of a gateway may have noticed a fault since `from`. A packet that was lost is sent again after
/// up to as long as the fault has taken.
fn record_gateway_fault(run: &Run, gateway: GatewayId, from: Time) {
    let now = run.now();
    let to = now + now.saturating_sub(from) + GATEWAY_RECOVERY;
    run.record_gateway_fault(gateway, Span { from, to });
}

async fn inject_and_end(run: &Run, random: &mut Random, fault: Fault) -> Result<()> {
    let deployment = &run.deployment;
    let duration = random.milliseconds(500..8000);
    match fault {
        Fault::Pause(node) => {
            deployment.signal(node, Signal::STOP)?;
            sleep(duration).await;
            deployment.signal(node, Signal::CONT)
        }
        Fault::Kill(node) => {
            deployment.kill(node);
            sleep(random.milliseconds(0..4000)).await;
            deployment.release(node)?;
            // Its clients notice the fault until it listens again.
            if node.gateway().is_some() {
                deployment.wait_until_listening(node).await?;
            }
            Ok(())
        }
        Fault::CutOff(node, direction) => {
            node.host().cut_off(&[], direction)?;
            sleep(duration).await;
            node.host().heal()
        }
        Fault::CutLink(node, peers, direction) => {
            let peers: Vec<_> = peers.nodes().into_iter().map(NodeId::host).collect();
            node.host().cut_off(&peers, direction)?;
            sleep(duration).await;
            node.host().heal()
        }
        Fault::LosePackets(node, part) => {
            node.host().lose_packets(part)?;
            sleep(duration).await;
            node.host().heal()
        }
        Fault::FillDisk(node) => {
            let filler = deployment.disk_of(node).join("filler");
            fill(&filler)?;
            sleep(duration).await;
            Ok(fs::remove_file(filler)?)
        }
        Fault::StepClock(seconds) => {
            deployment.clock.set(seconds)?;
            sleep(duration).await;
            deployment.clock.set(0)
        }
        Fault::FailOverRedis(failure) => fail_over_redis(run, failure).await,
        Fault::FailOverPostgres => {
            let outage = random.milliseconds(0..3000);
            deployment.fail_over_postgres(outage).await
        }
        Fault::Reload(node) => {
            for _ in 0..3 {
                deployment.reload_gateway(node)?;
                sleep(random.milliseconds(100..1500)).await;
            }
            Ok(())
        }
        Fault::Upgrade(node) => deployment.upgrade_gateway(node).await,
        Fault::Roll => {
            for node in NodeKind::AuthApi.nodes() {
                deployment.restart_gracefully(node).await?;
            }
            Ok(())
        }
    }
}

async fn fail_over_redis(run: &Run, failure: RedisFailure) -> Result<()> {
    let deployment = &run.deployment;
    let primary = redis_status::any_named_primary()
        .await
        .context("no Sentinel names a primary")?;
    match failure {
        RedisFailure::Killed => deployment.kill(primary),
        RedisFailure::Paused => deployment.signal(primary, Signal::STOP)?,
        RedisFailure::Isolated | RedisFailure::Divided => {
            let mut peers = NodeKind::Sentinel.nodes();
            peers.extend(NodeKind::Redis.nodes());
            let peers: Vec<_> = peers
                .into_iter()
                .filter(|peer| *peer != primary)
                .map(NodeId::host)
                .collect();
            primary.host().cut_off(&peers, Direction::Both)?;
        }
    }
    let start = Instant::now();
    let mut promoted = Ok(());
    while redis_status::any_named_primary().await == Some(primary) {
        if start.elapsed() > FAILOVER_TIMEOUT {
            promoted = Err(anyhow::anyhow!("Sentinel promotes no replica"));
            break;
        }
        sleep(POLL_INTERVAL).await;
    }
    // Both may be in use for a while.
    if failure == RedisFailure::Divided {
        deployment.kill(NodeId::AuthApi(0));
        deployment.release(NodeId::AuthApi(0))?;
        sleep(Duration::from_secs(8)).await;
    } else {
        sleep(Duration::from_secs(2)).await;
    }
    match failure {
        RedisFailure::Killed => deployment.release(primary)?,
        RedisFailure::Paused => deployment.signal(primary, Signal::CONT)?,
        RedisFailure::Isolated | RedisFailure::Divided => primary.host().heal()?,
    }
    promoted
}

/// Writes a file that takes all the space of a small disk.
fn fill(file: &Path) -> Result<()> {
    let mut filler = File::create(file)?;
    let block = [0; 4096];
    let mut written = 0;
    while filler.write_all(&block).is_ok() {
        written += block.len();
        ensure!(written < MAX_FILLER, "{} is no small disk", file.display());
    }
    Ok(())
}
