//! Requests and responses in the protocol of PostgreSQL (manual, chapter "Frontend/Backend Protocol").

use std::collections::HashMap;

use anyhow::Result;
use tokio::io::{AsyncBufRead, AsyncReadExt};

use super::Unit;

/// Code of a request for TLS, which the server of the harness refuses with one byte.
const SSL_REQUEST: u32 = 80_877_103;

/// Statements of background tasks and of connecting, by a part of their text.
const NOT_OF_OPERATIONS: [&str; 5] = [
    "server_encoding",
    "max(substr(password_hash",
    "_sqlx_migrations",
    "information_schema",
    "SET statement_timeout",
];

/// Reads what a client sends, up to each message that makes the server respond with `ReadyForQuery`.
#[derive(Debug, Default)]
pub(super) struct Requests {
    has_started: bool,
    /// SQL of prepared statements by name.
    statements: HashMap<Vec<u8>, String>,
}

impl Requests {
    pub(super) async fn read(&mut self, from: &mut (impl AsyncBufRead + Unpin)) -> Result<Unit> {
        if !self.has_started {
            return self.read_startup(from).await;
        }
        let mut unit = Unit::default();
        let (mut bound, mut executes) = (None, false);
        loop {
            let start = unit.bytes.len();
            let kind = read_message(from, &mut unit.bytes).await?;
            let body = &unit.bytes[start + 5..];
            match kind {
                b'P' => {
                    let (name, rest) = split_text(body);
                    let (sql, _) = split_text(rest);
                    let sql = String::from_utf8_lossy(sql).into_owned();
                    self.statements.insert(name.to_vec(), sql);
                }
                b'B' => {
                    let (_portal, rest) = split_text(body);
                    let (statement, _) = split_text(rest);
                    bound = self.statements.get(statement).cloned();
                }
                b'E' => executes = true,
                b'S' | b'Q' => {
                    let sql = match kind {
                        b'Q' => Some(String::from_utf8_lossy(split_text(body).0).into_owned()),
                        _ => bound.filter(|_| executes),
                    };
                    unit.operation = sql.filter(|sql| is_of_operation(sql));
                    unit.responses = 1;
                    return Ok(unit);
                }
                // Password, end of the connection, flush.
                b'p' | b'X' | b'H' => return Ok(unit),
                _ => {}
            }
        }
    }

    async fn read_startup(&mut self, from: &mut (impl AsyncBufRead + Unpin)) -> Result<Unit> {
        let mut bytes = vec![0; 4];
        from.read_exact(&mut bytes).await?;
        read_body(from, &mut bytes, 0).await?;
        let is_ssl_request = bytes[4..8] == SSL_REQUEST.to_be_bytes();
        self.has_started = !is_ssl_request;
        Ok(Unit {
            bytes,
            operation: None,
            responses: u64::from(!is_ssl_request),
        })
    }
}

fn is_of_operation(sql: &str) -> bool {
    !NOT_OF_OPERATIONS.iter().any(|part| sql.contains(part))
}

/// Reads what a server sends, up to each `ReadyForQuery`.
#[derive(Debug, Default)]
pub(super) struct Responses {
    has_started: bool,
}

impl Responses {
    pub(super) async fn read(&mut self, from: &mut (impl AsyncBufRead + Unpin)) -> Result<Unit> {
        let mut unit = Unit::default();
        if !self.has_started {
            self.has_started = true;
            let first = from.read_u8().await?;
            unit.bytes.push(first);
            if first == b'N' {
                return Ok(unit);
            }
            // A server that was not asked for TLS begins with a message.
            unit.bytes.extend(from.read_u32().await?.to_be_bytes());
            read_body(from, &mut unit.bytes, 1).await?;
            return Ok(unit);
        }
        loop {
            match read_message(from, &mut unit.bytes).await? {
                b'Z' => {
                    unit.responses = 1;
                    return Ok(unit);
                }
                // During authentication the client responds: these are forwarded at once.
                b'R' => return Ok(unit),
                _ => {}
            }
        }
    }
}

/// Returns the response to a request that the server rejects: an error, and that it is ready for another.
pub(super) fn error_response() -> Vec<u8> {
    let fields = b"SERROR\0VERROR\0C53100\0Mcould not extend file: no space left on device\0\0";
    let mut response = vec![b'E'];
    let length = u32::try_from(fields.len() + 4).expect("the text is short");
    response.extend(length.to_be_bytes());
    response.extend(fields);
    response.extend(b"Z\0\0\0\x05I");
    response
}

/// Reads a message and returns its type.
async fn read_message(from: &mut (impl AsyncBufRead + Unpin), bytes: &mut Vec<u8>) -> Result<u8> {
    let start = bytes.len();
    bytes.resize(start + 5, 0);
    from.read_exact(&mut bytes[start..]).await?;
    read_body(from, bytes, start + 1).await?;
    Ok(bytes[start])
}

/// Reads the rest of a message whose length is at `length_at`, as the last of `bytes`.
async fn read_body(
    from: &mut (impl AsyncBufRead + Unpin),
    bytes: &mut Vec<u8>,
    length_at: usize,
) -> Result<()> {
    let mut length = [0; 4];
    length.copy_from_slice(&bytes[length_at..length_at + 4]);
    let length = usize::try_from(u32::from_be_bytes(length))?;
    bytes.resize(length_at + length.max(4), 0);
    from.read_exact(&mut bytes[length_at + 4..]).await?;
    Ok(())
}

/// Splits a text that ends with NUL from what follows it.
fn split_text(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0);
    end.map_or((bytes, &[]), |end| (&bytes[..end], &bytes[end + 1..]))
}
