//! YAML documents whose nodes have positions.

use saphyr::{LoadableYamlNode, MarkedYaml};

use crate::config::error::ConfigError;

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
            position: Some(error.marker().into()),
            key: String::new(),
            problem: format!("is not valid YAML: {}", error.info()),
            hint: has_variable.then(|| {
                "inside {…} and […] a value with ${…} must be quoted: \"${NAME}\"".to_owned()
            }),
        }
    })
}
