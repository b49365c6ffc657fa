//! Thread that appends records to the file of the audit log.
//!
//! Records that arrive while others are written are appended, and synced, together. Records that the
//! file does not accept stay in memory, are logged on standard output at once, and are appended as soon
//! as the file accepts them: at most [`MAX_PENDING_BYTES`], beyond which they are only on standard output.

use std::convert::Infallible;
use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use supervision::Supervisor;
use tokio::sync::oneshot;

use super::file::{AuditFile, Durability};
use super::record::AuditRecord;
use crate::telemetry::metrics::AuditMetrics;

/// Name of the thread, and of its restarts in the metrics.
const THREAD: &str = "audit_writer";
/// Records that wait for the thread, beyond which one counts as not accepted.
const QUEUE_LENGTH: usize = 8192;
/// Records that are appended together, at most.
const MAX_BATCH: usize = 1024;
/// Bytes of records that wait for the file to accept them.
const MAX_PENDING_BYTES: usize = 8 << 20;
/// Pause between attempts while the file accepts nothing.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for the records at the end of the process.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for an acknowledgement, within the three seconds of a request.
const ACKNOWLEDGEMENT_TIMEOUT: Duration = Duration::from_secs(2);

/// Treatment of requests while the file of the audit log cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuditMode {
    /// Requests go on; their records are on standard output and are appended to the file later.
    BestEffort,
    /// A record is on disk before the response. Without it the response is 503.
    Required,
}

/// State of the file of an audit log. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct AuditFileState(Arc<Shared>);

impl AuditFileState {
    /// Returns whether the last append failed.
    pub(crate) fn is_failing(&self) -> bool {
        self.0.is_failing.load(Ordering::Relaxed)
    }
}

/// A record could not be written although it is required.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit log cannot be written")]
pub(crate) struct AuditUnavailable;

/// Handle of the thread.
#[derive(Debug)]
pub(super) struct AuditWriter {
    /// `None` once the value is dropped, which ends the thread.
    queue: Option<SyncSender<Entry>>,
    /// Disconnected when the thread has ended. In a lock, since the handle is shared.
    ended: Mutex<Receiver<Infallible>>,
    mode: AuditMode,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// True if the last append failed.
    is_failing: AtomicBool,
    metrics: AuditMetrics,
}

#[derive(Debug)]
struct Entry {
    record: AuditRecord,
    acknowledgement: Option<oneshot::Sender<()>>,
}

impl AuditWriter {
    /// Starts the thread, which `supervisor` restarts if it panics.
    pub(super) fn start(
        mut file: AuditFile,
        mode: AuditMode,
        metrics: AuditMetrics,
        supervisor: &Supervisor,
    ) -> io::Result<Self> {
        let (queue, entries) = sync_channel(QUEUE_LENGTH);
        let (running, ended) = sync_channel(0);
        let shared = Arc::new(Shared {
            is_failing: AtomicBool::new(false),
            metrics,
        });
        let durability = match mode {
            AuditMode::BestEffort => Durability::Written,
            AuditMode::Required => Durability::Synced,
        };
        let (state, supervisor) = (Arc::clone(&shared), supervisor.clone());
        thread::Builder::new()
            .name(THREAD.to_owned())
            .spawn(move || {
                let _running: SyncSender<Infallible> = running;
                let mut pending = Vec::new();
                supervisor.run_blocking(THREAD, || {
                    state.write_continuously(&entries, &mut pending, |records| {
                        file.append(records, durability)
                    });
                });
            })?;
        Ok(Self {
            queue: Some(queue),
            ended: Mutex::new(ended),
            mode,
            shared,
        })
    }

    /// Returns whether actions that have to be recorded cannot be.
    pub(super) fn is_refusing(&self) -> bool {
        self.required().is_some_and(|file| file.is_failing())
    }

    /// Returns the state of the file if records are required.
    pub(super) fn required(&self) -> Option<AuditFileState> {
        match self.mode {
            AuditMode::BestEffort => None,
            AuditMode::Required => Some(AuditFileState(Arc::clone(&self.shared))),
        }
    }

    /// Appends a record. If it is required, returns once it is on disk.
    pub(super) async fn record(&self, record: AuditRecord) -> Result<(), AuditUnavailable> {
        let (acknowledgement, acknowledged) = match self.mode {
            AuditMode::BestEffort => (None, None),
            AuditMode::Required => {
                let (sender, receiver) = oneshot::channel();
                (Some(sender), Some(receiver))
            }
        };
        let entry = Entry {
            record,
            acknowledgement,
        };
        let sent = match &self.queue {
            Some(queue) => queue.try_send(entry),
            None => Err(TrySendError::Disconnected(entry)),
        };
        if let Err(TrySendError::Full(entry) | TrySendError::Disconnected(entry)) = sent {
            self.shared.metrics.failures.inc();
            entry.record.log();
            return match self.mode {
                AuditMode::BestEffort => Ok(()),
                AuditMode::Required => Err(AuditUnavailable),
            };
        }
        let Some(acknowledged) = acknowledged else {
            return Ok(());
        };
        match tokio::time::timeout(ACKNOWLEDGEMENT_TIMEOUT, acknowledged).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(AuditUnavailable),
        }
    }
}

/// Waits until the records are written, for a bounded time.
impl Drop for AuditWriter {
    fn drop(&mut self) {
        self.queue = None;
        let _ = self.ended.get_mut().recv_timeout(FLUSH_TIMEOUT);
    }
}

impl Shared {
    /// Appends records until every handle is dropped. `pending` are those that were not accepted yet.
    fn write_continuously(
        &self,
        entries: &Receiver<Entry>,
        pending: &mut Vec<u8>,
        mut append: impl FnMut(&[u8]) -> io::Result<()>,
    ) {
        loop {
            let first = if pending.is_empty() {
                match entries.recv() {
                    Ok(entry) => Some(entry),
                    Err(_) => return,
                }
            } else {
                match entries.recv_timeout(RETRY_INTERVAL) {
                    Ok(entry) => Some(entry),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            };
            let batch: Vec<_> = first
                .into_iter()
                .chain(entries.try_iter())
                .take(MAX_BATCH)
                .collect();
            let mut records = mem::take(pending);
            let retried = records.len();
            for entry in &batch {
                entry.record.append_to(&mut records);
            }
            match append(&records) {
                Ok(()) => self.accepted(batch),
                Err(error) => {
                    self.rejected(&error, batch);
                    if records.len() > MAX_PENDING_BYTES {
                        records.truncate(retried);
                    }
                    *pending = records;
                }
            }
        }
    }

    fn accepted(&self, batch: Vec<Entry>) {
        if self.is_failing.swap(false, Ordering::Relaxed) {
            self.metrics.up.set(1);
            tracing::info!("audit log is written again");
        }
        for sender in batch.into_iter().filter_map(|entry| entry.acknowledgement) {
            // The request may have given up.
            let _ = sender.send(());
        }
    }

    /// Drops the acknowledgements, which their requests receive as failures.
    fn rejected(&self, error: &io::Error, batch: Vec<Entry>) {
        if !self.is_failing.swap(true, Ordering::Relaxed) {
            self.metrics.up.set(0);
            tracing::error!(%error, "audit log cannot be written: its records are logged here meanwhile");
        }
        for entry in batch {
            self.metrics.failures.inc();
            entry.record.log();
        }
    }
}
