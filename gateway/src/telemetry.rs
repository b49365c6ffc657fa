//! Logs: one JSON object a line in production, readable text on a terminal.

use std::io::IsTerminal;
use std::str::FromStr;

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::access_log::AccessLog;
use crate::config::Environment;
use crate::output::Output;

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

impl Logs {
    /// By `LOG_LEVEL` and `LOG_FORMAT`.
    ///
    /// # Errors
    /// When one has a value that it cannot have.
    pub(crate) fn of(environment: &Environment) -> anyhow::Result<Self> {
        let level = match environment.get("LOG_LEVEL") {
            None => Level::INFO,
            Some(text) => level(text).ok_or_else(|| {
                anyhow::anyhow!("LOG_LEVEL is `{text}`: must be DEBUG, INFO, WARNING or ERROR")
            })?,
        };
        let format = match environment.get("LOG_FORMAT") {
            None if std::io::stdout().is_terminal() => Format::Text,
            None => Format::Json,
            Some(text) => text.parse()?,
        };
        Ok(Self { level, format })
    }

    /// Sends every event from now on to an output.
    pub(crate) fn start(self, output: Output) {
        // What these say below an error is about single clients, and may quote what they sent.
        let filter = Targets::new()
            .with_default(LevelFilter::WARN)
            .with_target("gateway", self.level)
            .with_target("pingora_core", LevelFilter::ERROR)
            // It calls each second of waiting for the other gateway an error.
            .with_target("pingora_core::server::transfer_fd", LevelFilter::OFF)
            .with_target("h2", LevelFilter::ERROR);
        let layer = match self.format {
            Format::Json => fmt::layer()
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_writer(output)
                .boxed(),
            Format::Text => fmt::layer()
                .with_ansi(std::io::stdout().is_terminal())
                .with_writer(output)
                .boxed(),
        };
        // The filter stands before all layers and not at the one: a filter of a layer loses the
        // next event of a thread whenever a library only asks whether it would be heard.
        tracing_subscriber::registry()
            .with(filter)
            .with(layer)
            .init();
    }

    /// Requests are told of at INFO.
    pub(crate) fn access_log(self, output: &Output) -> AccessLog {
        if self.level >= Level::INFO {
            AccessLog::to(output.clone(), self.format)
        } else {
            AccessLog::off()
        }
    }
}

fn level(text: &str) -> Option<Level> {
    Some(match text.to_ascii_uppercase().as_str() {
        "TRACE" => Level::TRACE,
        "DEBUG" => Level::DEBUG,
        "INFO" => Level::INFO,
        "WARN" | "WARNING" => Level::WARN,
        "ERROR" | "CRITICAL" => Level::ERROR,
        _ => return None,
    })
}

impl FromStr for Format {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => anyhow::bail!("LOG_FORMAT is `{text}`: must be json or text"),
        }
    }
}
