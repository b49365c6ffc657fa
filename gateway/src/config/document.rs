//! YAML documents whose nodes have positions.

use saphyr::{LoadableYamlNode, MarkedYaml};

use crate::config::error::{ConfigError, Position};

/// Parses all YAML documents of a file. The caller decides how many there may be.
///
/// # Errors
/// Returns the syntax error, with its position.
pub(super) fn parse_documents(text: &str) -> Result<Vec<MarkedYaml<'_>>, ConfigError> {
    MarkedYaml::load_from_str(text).map_err(|error| {
        let line = error.marker().line();
        let has_variable = text
            .lines()
            .nth(line.saturating_sub(1))
            .is_some_and(|line| line.contains("${"));
        ConfigError {
            position: Some(within(text, Position::from(error.marker()))),
            key: String::new(),
            problem: format!("is not valid YAML: {}", error.info()),
            hint: has_variable.then(|| {
                "inside {…} and […] a value with ${…} must be quoted: \"${NAME}\"".to_owned()
            }),
        }
    })
}

/// Returns a position of the parser, or the end of the text if it is behind that: the parser adds a line break to a
/// last line that has none.
fn within(text: &str, position: Position) -> Position {
    let lines = text.lines().count();
    match text.lines().last() {
        Some(last) if position.line > lines && !text.ends_with('\n') => Position {
            line: lines,
            column: last.chars().count() + 1,
        },
        _ => position,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_at_the_end_is_within_the_file() {
        let position = |text| {
            let position = parse_documents(text).unwrap_err().position.unwrap();
            (position.line, position.column)
        };
        assert_eq!(position("a:\n  {b: é"), (2, 8));
        assert_eq!(position("a:\n  {b: c\n"), (3, 1));
    }
}
