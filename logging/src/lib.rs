//! Logging of both programs: one JSON object per line in production, readable text on a terminal,
//! through a writer that never blocks a request.

mod access_log;
mod settings;
mod setup;
mod text;
mod timestamp;
mod writer;

pub use access_log::{AccessLog, AccessLogEntry};
pub use settings::{InvalidSetting, LogFormat, LogSettings};
pub use setup::{Colours, install};
pub use text::{put_escaped, put_number, put_quoted, put_seconds};
pub use writer::{ACCESS_LOG_TARGET, EventWriter, FlushGuard, LogWriter};
