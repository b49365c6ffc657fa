//! Access log: one line per request, as JSON or as text, formatted without `tracing`, whose events cost about ten
//! times as much.

use crate::settings::{LogFormat, LogSettings};
use crate::writer::LogWriter;

/// Request in the access log.
pub trait AccessLogEntry {
    /// Appends a line of JSON, which ends with a line feed. `timestamp` is the text of the current time.
    fn put_json(&self, line: &mut Vec<u8>, timestamp: &[u8]);

    /// Appends a line of text in the same way.
    fn put_text(&self, line: &mut Vec<u8>, timestamp: &[u8]);
}

/// Access log, whose lines have the level INFO, or nothing where the log level excludes it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AccessLog(Option<(LogWriter, LogFormat)>);

impl AccessLog {
    /// Returns an access log that `writer` writes if `settings` include it.
    #[must_use]
    pub fn new(settings: LogSettings, writer: &LogWriter) -> Self {
        let is_included = settings.level >= tracing::Level::INFO;
        Self(is_included.then(|| (writer.clone(), settings.format)))
    }

    /// Returns an access log that contains nothing.
    #[must_use]
    pub fn disabled() -> Self {
        Self(None)
    }

    /// Records a request.
    pub fn record(&self, entry: &impl AccessLogEntry) {
        if let Some((writer, format)) = &self.0 {
            writer.append(|lines, now| match format {
                LogFormat::Json => entry.put_json(lines, now),
                LogFormat::Text => entry.put_text(lines, now),
            });
        }
    }
}
