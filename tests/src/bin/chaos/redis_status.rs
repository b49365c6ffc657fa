//! State of the Redis servers, as they and the Sentinels tell it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::node::NodeId;

pub(crate) const REDIS_PORT: u16 = 6379;
pub(crate) const SENTINEL_PORT: u16 = 26379;
/// Name of the primary at the Sentinels.
pub(crate) const SERVICE: &str = "main";
const COMMAND_TIMEOUT: Duration = Duration::from_millis(500);
pub(crate) const SERVERS: [NodeId; 3] = [NodeId::Redis(0), NodeId::Redis(1), NodeId::Redis(2)];
const SENTINELS: [NodeId; 3] = [
    NodeId::Sentinel(0),
    NodeId::Sentinel(1),
    NodeId::Sentinel(2),
];

/// Returns the primary if the Sentinels agree on it, and the other servers follow it within `min-replicas-max-lag`.
pub(crate) async fn settled_primary() -> Option<NodeId> {
    let address = named_primary(SENTINELS[0]).await?;
    for sentinel in &SENTINELS[1..] {
        if named_primary(*sentinel).await? != address {
            return None;
        }
    }
    let primary = SERVERS
        .into_iter()
        .find(|server| server.host().address == address)?;
    for server in SERVERS {
        let info = replication(server).await.ok()?;
        let expected: &[&str] = if server == primary {
            &["role:master", "min_slaves_good_slaves:2"]
        } else {
            &["role:slave", "master_link_status:up"]
        };
        if !expected.iter().all(|text| info.contains(text)) {
            return None;
        }
    }
    Some(primary)
}

/// Returns the address of the primary that a Sentinel names.
pub(crate) async fn named_primary(sentinel: NodeId) -> Option<Ipv4Addr> {
    let address = (sentinel.host().address, SENTINEL_PORT).into();
    let command = format!("SENTINEL get-master-addr-by-name {SERVICE}\r\n");
    timeout(COMMAND_TIMEOUT, first_of_array(address, &command))
        .await
        .ok()?
        .ok()?
        .parse()
        .ok()
}

/// Returns the primary that any of the Sentinels names.
pub(crate) async fn any_named_primary() -> Option<NodeId> {
    for sentinel in SENTINELS {
        if let Some(address) = named_primary(sentinel).await {
            return SERVERS
                .into_iter()
                .find(|server| server.host().address == address);
        }
    }
    None
}

/// Returns the section `replication` of `INFO`.
pub(crate) async fn replication(server: NodeId) -> Result<String> {
    let address = (server.host().address, REDIS_PORT).into();
    timeout(COMMAND_TIMEOUT, bulk(address, "INFO replication\r\n")).await?
}

async fn send(address: SocketAddr, command: &str) -> Result<BufReader<TcpStream>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(command.as_bytes()).await?;
    Ok(BufReader::new(stream))
}

/// Sends an inline command whose response is a bulk string.
async fn bulk(address: SocketAddr, command: &str) -> Result<String> {
    read_bulk(&mut send(address, command).await?).await
}

/// Sends an inline command whose response is an array of bulk strings, and returns the first of them.
async fn first_of_array(address: SocketAddr, command: &str) -> Result<String> {
    let mut stream = send(address, command).await?;
    let mut length = String::new();
    stream.read_line(&mut length).await?;
    length.strip_prefix('*').context("no array")?;
    read_bulk(&mut stream).await
}

async fn read_bulk(stream: &mut BufReader<TcpStream>) -> Result<String> {
    let mut length = String::new();
    stream.read_line(&mut length).await?;
    let length = length.strip_prefix('$').context("no bulk string")?;
    let mut text = vec![0; length.trim().parse()?];
    stream.read_exact(&mut text).await?;
    Ok(String::from_utf8(text)?)
}
