//! Logging of both programs: one JSON object per line in production, readable text on a terminal,
//! through a writer that never blocks a request.

mod settings;
mod setup;
mod timestamp;
mod writer;

pub use settings::{InvalidSetting, LogFormat, LogSettings};
pub use setup::{Colours, install};
pub use timestamp::put_microseconds;
pub use writer::{ACCESS_LOG_TARGET, EventWriter, FlushGuard, LogWriter};
