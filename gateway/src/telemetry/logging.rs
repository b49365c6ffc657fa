//! Logging of the gateway: which events are logged.

use logging::{Colours, LogFormat, LogSettings, LogWriter};
use std::io::IsTerminal;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

/// Sends every event from now on to `writer`.
pub(crate) fn start(settings: LogSettings, writer: LogWriter) {
    // Below ERROR Pingora logs about single clients, and may quote what they sent; what the client of Redis warns about, its
    // callers log once for each outage.
    let filter = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("gateway", settings.level)
        .with_target("redis_connection", settings.level)
        .with_target("session_invalidation", settings.level)
        .with_target("fred", LevelFilter::ERROR)
        .with_target("pingora_core", LevelFilter::ERROR)
        // Logs an error for each second of waiting for the gateway that hands its sockets over.
        .with_target("pingora_core::server::transfer_fd", LevelFilter::OFF);
    let colours = if settings.format == LogFormat::Text && std::io::stdout().is_terminal() {
        Colours::Ansi
    } else {
        Colours::None
    };
    logging::install(filter, settings.format, colours, writer);
}
