//! Errors of a configuration file, each with its position, its key and a hint.

use std::fmt;
use std::path::{Path, PathBuf};

use saphyr::Marker;

/// Position in the file. Lines and columns start at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl From<&Marker> for Position {
    fn from(marker: &Marker) -> Self {
        Self {
            line: marker.line(),
            // The parser counts columns from 0, editors from 1.
            column: marker.col() + 1,
        }
    }
}

impl Position {
    /// Returns a position of the parser, or the end of the text if it is behind that: the parser adds a line break to a
    /// last line that has none.
    fn within(self, text: &str) -> Self {
        let lines = text.lines().count();
        match text.lines().last() {
            Some(last) if self.line > lines && !text.ends_with('\n') => Self {
                line: lines,
                column: last.chars().count() + 1,
            },
            _ => self,
        }
    }
}

/// One error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConfigError {
    /// `None` for the file as a whole.
    pub(super) position: Option<Position>,
    /// Full path of the key, as in `premier.paths[2].pattern`. Empty for the file as a whole.
    pub(super) key: String,
    pub(super) problem: String,
    /// Text that helps to fix the error.
    pub(super) hint: Option<String>,
}

impl ConfigError {
    /// Creates an error that concerns the file as a whole.
    pub(super) fn of_whole_file(problem: String) -> Self {
        Self {
            position: None,
            key: String::new(),
            problem,
            hint: None,
        }
    }
}

/// All errors of a file, sorted by position. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigErrors {
    file: PathBuf,
    errors: Vec<ConfigError>,
}

impl ConfigErrors {
    /// Errors of a file with this text.
    pub(super) fn new(file: &Path, text: &str, mut errors: Vec<ConfigError>) -> Self {
        for error in &mut errors {
            error.position = error.position.map(|position| position.within(text));
        }
        errors.sort_by_key(|error| error.position);
        Self {
            file: file.to_owned(),
            errors,
        }
    }

    /// Creates the error of a file as a whole.
    pub(super) fn of_file(file: &Path, problem: String) -> Self {
        Self {
            file: file.to_owned(),
            errors: vec![ConfigError::of_whole_file(problem)],
        }
    }

    /// Returns line and column of each error, `None` for one that concerns the file as a whole.
    pub(crate) fn positions(&self) -> impl Iterator<Item = Option<(usize, usize)>> {
        let positions = self.errors.iter().map(|error| error.position);
        positions.map(|position| position.map(|Position { line, column }| (line, column)))
    }

    pub(crate) fn count(&self) -> usize {
        self.errors.len()
    }
}

/// Formats each error as `file:line:column: key: problem`, and its hint in a second, indented line.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                writeln!(formatter)?;
            }
            write!(formatter, "{}", self.file.display())?;
            if let Some(Position { line, column }) = error.position {
                write!(formatter, ":{line}:{column}")?;
            }
            write!(formatter, ": ")?;
            if !error.key.is_empty() {
                write!(formatter, "{}: ", error.key)?;
            }
            write!(formatter, "{}", error.problem)?;
            if let Some(hint) = &error.hint {
                write!(formatter, "\n  {hint}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
