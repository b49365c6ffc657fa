//! Logs: one JSON object a line in production, readable text on a terminal.

use std::io::IsTerminal;

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::log_buffer::{Flush, LogBuffer};

/// What is logged, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Logs {
    pub(crate) level: Level,
    pub(crate) format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Text,
}

impl Format {
    /// Text for a person who watches, JSON for a machine that collects.
    pub(crate) fn for_this_terminal() -> Self {
        if std::io::stdout().is_terminal() {
            Self::Text
        } else {
            Self::Json
        }
    }
}

/// Sends every event from now on to standard output, the last ones when what is returned is dropped.
pub(crate) fn start(logs: &Logs) -> Flush {
    let (buffer, flush) = LogBuffer::start();
    send(logs, buffer, std::io::stdout().is_terminal());
    flush
}

/// Sends every event from now on to standard error: standard output has the answer of a command.
pub(crate) fn start_beside_output(logs: &Logs) {
    send(logs, std::io::stderr, std::io::stderr().is_terminal());
}

fn send<W>(logs: &Logs, writer: W, ansi: bool)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // What libraries say below a warning may show statements and their values. Security events are
    // no matter of the level.
    let filter = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("auth_api", logs.level)
        .with_target("audit", logs.level.max(Level::INFO));
    let layer = match logs.format {
        Format::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_writer(writer)
            .boxed(),
        Format::Text => fmt::layer().with_ansi(ansi).with_writer(writer).boxed(),
    };
    // The filter stands before all layers and not at the one: a filter of a layer loses the next
    // event of a thread whenever a library only asks whether it would be heard.
    tracing_subscriber::registry()
        .with(filter)
        .with(layer)
        .init();
}
