//! Programs of the deployment, each alone on its host.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::process::Signal;
use tests::process::{Process, signal_with_children};

use crate::history::GatewayId;
use crate::network::Host;

const GATEWAYS: [Host; 2] = [Host::new("gateway1", 11), Host::new("gateway2", 12)];
const AUTH_APIS: [Host; 3] = [
    Host::new("auth-api1", 21),
    Host::new("auth-api2", 22),
    Host::new("auth-api3", 23),
];
const POSTGRES: [Host; 2] = [Host::new("postgres1", 31), Host::new("postgres2", 32)];
const REDIS: [Host; 3] = [
    Host::new("redis1", 41),
    Host::new("redis2", 42),
    Host::new("redis3", 43),
];
const SENTINELS: [Host; 3] = [
    Host::new("sentinel1", 51),
    Host::new("sentinel2", 52),
    Host::new("sentinel3", 53),
];

/// Name of a node. The number is its index among those of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NodeId {
    Gateway(usize),
    AuthApi(usize),
    Postgres(usize),
    Redis(usize),
    Sentinel(usize),
}

impl NodeId {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        // In the order in which they are started.
        let indexes = |hosts: &[Host]| 0..hosts.len();
        indexes(&POSTGRES)
            .map(Self::Postgres)
            .chain(indexes(&REDIS).map(Self::Redis))
            .chain(indexes(&SENTINELS).map(Self::Sentinel))
            .chain(indexes(&AUTH_APIS).map(Self::AuthApi))
            .chain(indexes(&GATEWAYS).map(Self::Gateway))
    }

    pub(crate) fn host(self) -> Host {
        match self {
            Self::Gateway(index) => GATEWAYS[index],
            Self::AuthApi(index) => AUTH_APIS[index],
            Self::Postgres(index) => POSTGRES[index],
            Self::Redis(index) => REDIS[index],
            Self::Sentinel(index) => SENTINELS[index],
        }
    }

    /// Returns the gateway, if the node is one.
    pub(crate) fn gateway(self) -> Option<GatewayId> {
        match self {
            Self::Gateway(index) => Some(GatewayId(index)),
            _ => None,
        }
    }

    /// Returns true if the node runs a program of this project.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Gateway(_) | Self::AuthApi(_))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.host().name)
    }
}

/// What is done when the process of a node exits by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Supervision {
    /// It is started again, as by systemd or Docker.
    Restart,
    /// It stays down until the nemesis starts it.
    Held,
}

/// A node and its process.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) supervision: Supervision,
    pub(crate) process: Option<Process>,
    /// Gateways that have handed their sockets over and finish their requests.
    pub(crate) draining: Vec<Process>,
    /// Folder of its files.
    pub(crate) folder: PathBuf,
    pub(crate) log_file: PathBuf,
}

impl Node {
    /// Sends a signal to the process and its children.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let process = self.process.as_ref();
        let process = process.with_context(|| format!("{} does not run", self.id))?;
        signal_with_children(process.id(), signal)?;
        for process in &self.draining {
            let _ = process.signal(signal);
        }
        Ok(())
    }

    /// Kills the process with its children, which of PostgreSQL would go on without it for a while.
    pub(crate) fn kill(&mut self) {
        let _ = self.signal(Signal::KILL);
        self.process = None;
        self.draining.clear();
    }
}
