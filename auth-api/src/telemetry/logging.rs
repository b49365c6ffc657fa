//! Logging of auth-api: which events are logged, and where to.

use std::io::IsTerminal;

use logging::{ACCESS_LOG_TARGET, Colours, FlushGuard, LogFormat, LogSettings, LogWriter};
use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use crate::telemetry::metrics::Metrics;

/// Starts logging to standard output, panics included. Dropping the guard writes the buffered lines.
pub(crate) fn start(settings: LogSettings, metrics: &Metrics) -> (LogWriter, FlushGuard) {
    let (writer, flush_guard) = LogWriter::start(&metrics.supervisor);
    metrics.register_shared(Box::new(writer.dropped().clone()));
    let colours = colours(settings, &std::io::stdout());
    logging::install(filter(settings), settings.format, colours, writer.clone());
    metrics.supervisor.install_panic_hook();
    (writer, flush_guard)
}

/// Starts logging to standard error, for commands whose output goes to standard output.
pub(crate) fn start_on_standard_error(settings: LogSettings) {
    let colours = colours(settings, &std::io::stderr());
    logging::install(filter(settings), settings.format, colours, std::io::stderr);
}

/// Events of libraries below WARN may contain SQL statements with their values. What the client of Redis warns about, its
/// callers log once for each outage. Audit events are logged at every level.
fn filter(settings: LogSettings) -> Targets {
    Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("fred", LevelFilter::ERROR)
        .with_target("auth_api", settings.level)
        .with_target("redis_connection", settings.level)
        .with_target("session_invalidation", settings.level)
        .with_target(ACCESS_LOG_TARGET, settings.level)
        .with_target("audit", settings.level.max(Level::INFO))
}

fn colours(settings: LogSettings, output: &impl IsTerminal) -> Colours {
    if settings.format == LogFormat::Text && output.is_terminal() {
        Colours::Ansi
    } else {
        Colours::None
    }
}
