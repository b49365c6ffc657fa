//! Requests and responses in RESP, the protocol of Redis.

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

use super::Unit;

pub(super) const ERROR_RESPONSE: &[u8] =
    b"-OOM command not allowed when used memory > 'maxmemory'.\r\n";

/// Arguments of a command that its description has at most.
const DESCRIBED_ARGUMENTS: usize = 4;
/// Key that checks of readiness write.
const CHECK_KEY: &str = "session:check";
/// Channel of invalidations, which a command publishes itself if it ends the sessions of all accounts.
const INVALIDATION_CHANNEL: &str = "sessions:ended";

/// Reads a command. Scripts are parts of operations; heartbeats, acknowledgements and checks of readiness are not.
pub(super) async fn read_request(from: &mut (impl AsyncBufRead + Unpin)) -> Result<Unit> {
    let mut bytes = Vec::new();
    let count = read_length(from, &mut bytes, b'*').await?;
    let mut arguments = Vec::new();
    for _ in 0..count {
        let length = read_length(from, &mut bytes, b'$').await?;
        let start = bytes.len();
        read_exactly(from, &mut bytes, length + 2).await?;
        arguments.push(String::from_utf8_lossy(&bytes[start..start + length]).into_owned());
    }
    let command = arguments.first().map(|command| command.to_uppercase());
    let is_operation = match command.as_deref() {
        // Script or its hash, number of keys, keys.
        Some("EVALSHA" | "EVAL") => arguments.get(3).is_none_or(|key| key != CHECK_KEY),
        Some("PUBLISH") => arguments
            .get(1)
            .is_some_and(|channel| channel == INVALIDATION_CHANNEL),
        _ => false,
    };
    let description = arguments.iter().take(DESCRIBED_ARGUMENTS).cloned();
    Ok(Unit {
        bytes,
        operation: is_operation.then(|| description.collect::<Vec<_>>().join(" ")),
        responses: 1,
    })
}

/// Reads a response with everything in it.
pub(super) async fn read_response(from: &mut (impl AsyncBufRead + Unpin)) -> Result<Unit> {
    let mut bytes = Vec::new();
    let mut values = 1;
    while values > 0 {
        values -= 1;
        let start = bytes.len();
        read_line(from, &mut bytes).await?;
        let line = String::from_utf8_lossy(&bytes[start..]).into_owned();
        // Null has the length -1.
        let length = || usize::try_from(line[1..].trim_end().parse::<i64>().unwrap_or(-1)).ok();
        match line.as_bytes()[0] {
            b'$' | b'!' | b'=' => {
                if let Some(length) = length() {
                    read_exactly(from, &mut bytes, length + 2).await?;
                }
            }
            b'*' | b'~' | b'>' => values += length().unwrap_or(0),
            b'%' => values += 2 * length().unwrap_or(0),
            _ => {}
        }
    }
    Ok(Unit {
        bytes,
        operation: None,
        responses: 1,
    })
}

async fn read_length(
    from: &mut (impl AsyncBufRead + Unpin),
    bytes: &mut Vec<u8>,
    kind: u8,
) -> Result<usize> {
    let start = bytes.len();
    read_line(from, bytes).await?;
    let line = std::str::from_utf8(&bytes[start..])?;
    ensure!(line.as_bytes()[0] == kind, "unexpected line {line:?}");
    line[1..].trim_end().parse().context("a length")
}

async fn read_line(from: &mut (impl AsyncBufRead + Unpin), bytes: &mut Vec<u8>) -> Result<()> {
    let count = from.read_until(b'\n', bytes).await?;
    ensure!(count > 1, "the connection was closed");
    Ok(())
}

async fn read_exactly(
    from: &mut (impl AsyncBufRead + Unpin),
    bytes: &mut Vec<u8>,
    count: usize,
) -> Result<()> {
    let start = bytes.len();
    bytes.resize(start + count, 0);
    from.read_exact(&mut bytes[start..]).await?;
    Ok(())
}
