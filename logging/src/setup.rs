//! Set-up of `tracing`.

use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::settings::LogFormat;

/// Terminal colours in text lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colours {
    /// ANSI escape sequences are written.
    Ansi,
    /// Text only.
    None,
}

/// Installs the process's subscriber: events that pass `filter` are written in `format` to `writer`.
///
/// # Panics
/// Panics if a subscriber is installed already.
pub fn install<W>(filter: Targets, format: LogFormat, colours: Colours, writer: W)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = match format {
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_writer(writer)
            .boxed(),
        LogFormat::Text => fmt::layer()
            .with_ansi(colours == Colours::Ansi)
            .with_writer(writer)
            .boxed(),
    };
    // The filter is a layer of its own: a per-layer filter loses a thread's next event whenever a
    // library only asks whether an event would be enabled.
    tracing_subscriber::registry()
        .with(filter)
        .with(layer)
        .init();
}
