//! Settings of the log: `LOG_LEVEL` and `LOG_FORMAT`.

use std::io::IsTerminal;
use std::str::FromStr;

use thiserror::Error;
use tracing::Level;

/// Level and format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSettings {
    /// Least severe level that is logged.
    pub level: Level,
    /// Format of the lines.
    pub format: LogFormat,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Human-readable text.
    Text,
}

/// Value of a setting that it cannot have. The message names the setting and the allowed values.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidSetting {
    /// `LOG_LEVEL`
    #[error("LOG_LEVEL is `{0}`: must be DEBUG, INFO, WARNING or ERROR")]
    Level(String),
    /// `LOG_FORMAT`
    #[error("LOG_FORMAT is `{0}`: must be json or text")]
    Format(String),
}

impl LogSettings {
    /// Parses the values of `LOG_LEVEL` (default `INFO`) and `LOG_FORMAT` (default `text` if standard
    /// output is a terminal, else `json`), in any case. The names are those of Python's `logging`.
    ///
    /// # Errors
    /// Returns an error for a value that is not one of the allowed ones.
    pub fn parse(level: Option<&str>, format: Option<&str>) -> Result<Self, InvalidSetting> {
        Ok(Self {
            level: level.map_or(Ok(Level::INFO), parse_level)?,
            format: format.map_or_else(|| Ok(LogFormat::for_standard_output()), str::parse)?,
        })
    }
}

impl LogFormat {
    /// Returns `Text` if standard output is a terminal, else `Json`.
    #[must_use]
    pub fn for_standard_output() -> Self {
        if std::io::stdout().is_terminal() {
            Self::Text
        } else {
            Self::Json
        }
    }
}

impl FromStr for LogFormat {
    type Err = InvalidSetting;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(InvalidSetting::Format(text.to_owned())),
        }
    }
}

fn parse_level(text: &str) -> Result<Level, InvalidSetting> {
    match text.to_ascii_uppercase().as_str() {
        "TRACE" => Ok(Level::TRACE),
        "DEBUG" => Ok(Level::DEBUG),
        "INFO" => Ok(Level::INFO),
        "WARN" | "WARNING" => Ok(Level::WARN),
        "ERROR" | "CRITICAL" => Ok(Level::ERROR),
        _ => Err(InvalidSetting::Level(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_levels_are_those_of_python_in_any_case() {
        for (text, level) in [
            ("debug", Level::DEBUG),
            ("INFO", Level::INFO),
            ("Warning", Level::WARN),
            ("CRITICAL", Level::ERROR),
        ] {
            let settings = LogSettings::parse(Some(text), Some("JSON")).unwrap();
            assert_eq!((settings.level, settings.format), (level, LogFormat::Json));
        }
    }

    #[test]
    fn an_invalid_value_is_reported_with_the_allowed_ones() {
        let level = LogSettings::parse(Some("LOUD"), None).unwrap_err();
        assert_eq!(
            level.to_string(),
            "LOG_LEVEL is `LOUD`: must be DEBUG, INFO, WARNING or ERROR"
        );
        let format = LogSettings::parse(None, Some("xml")).unwrap_err();
        assert_eq!(
            format.to_string(),
            "LOG_FORMAT is `xml`: must be json or text"
        );
    }
}
