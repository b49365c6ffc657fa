//! Hosts: each is a network namespace with an address on one bridge. `scripts/chaos` has put this process into
//! namespaces of its own, so that the kernel removes all of them, and every process in them, with it.

use std::ffi::OsStr;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Address of the clients, which are on the bridge itself.
pub(crate) const CLIENTS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const BRIDGE: &str = "chaos";
const NAMESPACES: &str = "/run/netns";

/// Creates the bridge, and the folder of names of namespaces.
pub(crate) fn create() -> Result<()> {
    ip("link set lo up")?;
    fs::create_dir_all(NAMESPACES)?;
    // Names of this run only: the folder is that of a mount namespace.
    run(Command::new("mount").args(["-t", "tmpfs", "tmpfs", NAMESPACES]))?;
    // Where the machine passes bridged packets to iptables, a rule of Docker could drop them. The setting is that of
    // this network namespace.
    let _ = fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
    ip(&format!("link add {BRIDGE} type bridge"))?;
    ip(&format!("address add {CLIENTS}/24 dev {BRIDGE}"))?;
    ip(&format!("link set {BRIDGE} up"))
}

/// Replaces `/etc/hosts` for the processes of this run, which read it at each lookup.
pub(crate) fn use_hosts_file(file: &Path) -> Result<()> {
    fs::write(file, "127.0.0.1 localhost\n")?;
    run(Command::new("mount")
        .arg("--bind")
        .arg(file)
        .arg("/etc/hosts"))
}

/// Direction in which packets are dropped, as seen from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Both,
    Incoming,
    Outgoing,
}

/// A host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) name: &'static str,
    pub(crate) address: Ipv4Addr,
}

impl Host {
    pub(crate) const fn new(name: &'static str, last_byte: u8) -> Self {
        let [a, b, c, _] = CLIENTS.octets();
        Self {
            name,
            address: Ipv4Addr::new(a, b, c, last_byte),
        }
    }

    /// Creates the namespace and connects it to the bridge.
    pub(crate) fn create(self) -> Result<()> {
        let Self { name, address } = self;
        ip(&format!("netns add {name}"))?;
        ip(&format!(
            "link add {name} type veth peer name eth0 netns {name}"
        ))?;
        ip(&format!("link set {name} master {BRIDGE} up"))?;
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} address add {address}/24 dev eth0"))?;
        ip(&format!("-n {name} link set eth0 up"))
    }

    /// Returns a command that runs `program` on this host.
    pub(crate) fn command(self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={NAMESPACES}/{}", self.name))
            .arg("--")
            .arg(program);
        command
    }

    /// Drops packets from and to `peers`, or all other hosts if there are none.
    pub(crate) fn cut_off(self, peers: &[Self], direction: Direction) -> Result<()> {
        let everything = [String::from("0.0.0.0/0")];
        let addresses: Vec<_> = peers.iter().map(|peer| peer.address.to_string()).collect();
        let addresses = if peers.is_empty() {
            &everything[..]
        } else {
            &addresses
        };
        for address in addresses {
            if direction != Direction::Outgoing {
                self.drop_packets(&["INPUT", "--source", address])?;
            }
            if direction != Direction::Incoming {
                self.drop_packets(&["OUTPUT", "--destination", address])?;
            }
        }
        Ok(())
    }

    /// Drops a part of the packets, between 0 and 1, in each direction.
    pub(crate) fn lose_packets(self, part: f64) -> Result<()> {
        let part = format!("{part:.2}");
        for chain in ["INPUT", "OUTPUT"] {
            let statistic = [
                "-m",
                "statistic",
                "--mode",
                "random",
                "--probability",
                &part,
            ];
            self.drop_packets(&[&[chain], &statistic[..]].concat())?;
        }
        Ok(())
    }

    /// Lets all packets through again.
    pub(crate) fn heal(self) -> Result<()> {
        run(self.command("iptables").args(["--wait", "--flush"]))
    }

    fn drop_packets(self, rule: &[&str]) -> Result<()> {
        // The programs on a host may reach one another by its loopback.
        run(self
            .command("iptables")
            .args(["--wait", "--append"])
            .args(rule)
            .args(["--jump", "DROP"]))
    }
}

fn ip(arguments: &str) -> Result<()> {
    run(Command::new("ip").args(arguments.split(' ')))
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("running {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
