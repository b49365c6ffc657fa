//! Loading of gateway.yml.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::path::Path;

use crate::config::document::parse_documents;
use crate::config::error::{ConfigError, ConfigErrors};
use crate::config::interpolate::Environment;
use crate::config::listen;
use crate::config::model::Config;
use crate::config::node::{Node, ParseContext};
use crate::config::premier;

impl Config {
    /// Reads and parses a configuration file.
    ///
    /// # Errors
    /// Returns all errors of the file.
    pub(crate) fn load(file: &Path, environment: &Environment) -> Result<Self, ConfigErrors> {
        let bytes = std::fs::read(file)
            .map_err(|error| ConfigErrors::of_file(file, format!("cannot be read: {error}")))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = 1 + memchr::memchr_iter(b'\n', valid).count();
            ConfigErrors::of_file(file, format!("line {line} is not UTF-8"))
        })?;
        Self::parse(file, &text, environment)
    }

    /// Parses a configuration that was read from `file`. Certificates and keys are read from the files
    /// that it names.
    ///
    /// # Errors
    /// Returns all errors of the text.
    pub(crate) fn parse(
        file: &Path,
        text: &str,
        environment: &Environment,
    ) -> Result<Self, ConfigErrors> {
        let documents =
            parse_documents(text).map_err(|error| ConfigErrors::new(file, text, vec![error]))?;
        let [document] = documents.as_slice() else {
            let problem = format!("has {} YAML documents, must have one", documents.len());
            return Err(ConfigErrors::of_file(file, problem));
        };
        let context = ParseContext::new(environment);
        let mut warnings = Vec::new();
        let config = premier::parse(&Node::root(document, &context), &mut warnings);
        let mut errors = context.into_errors();
        errors.extend(
            environment
                .invalid_settings()
                .map(ConfigError::of_whole_file),
        );
        match config {
            Some(config) if errors.is_empty() => Ok(Self {
                warnings,
                hash: hash(text),
                ..config
            }),
            _ => Err(ConfigErrors::new(file, text, errors)),
        }
    }
}

fn hash(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Returns the address of the admin listener of a gateway with this configuration. Other errors in the
/// file are ignored: a running gateway still has the configuration that it loaded before.
pub(crate) fn admin_address(file: &Path, environment: &Environment) -> SocketAddr {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    listen::admin_address(&text, environment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_for_its_configuration_and_its_admin_address() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gateway.yml");
        let environment = Environment::for_tests();
        let error = Config::load(&file, &environment).unwrap_err().to_string();
        assert!(error.contains("gateway.yml: cannot be read"), "{error}");
        std::fs::write(&file, b"premier:\n  keyspace: \xe4\n").unwrap();
        let error = Config::load(&file, &environment).unwrap_err().to_string();
        assert!(
            error.contains("gateway.yml: line 2 is not UTF-8"),
            "{error}"
        );
        assert_eq!(admin_address(&file, &environment).port(), 9901);
        std::fs::write(&file, "premier: {listen: {admin: '127.0.0.1:1'}}").unwrap();
        let config = Config::load(&file, &environment).unwrap();
        assert_eq!(config.listen.admin.port(), 1);
        assert_eq!(admin_address(&file, &environment), config.listen.admin);
    }

    #[test]
    fn an_error_at_the_end_is_within_the_file() {
        let position = |text| {
            let parsed = Config::parse("gateway.yml".as_ref(), text, &Environment::for_tests());
            parsed.unwrap_err().positions().next().unwrap()
        };
        assert_eq!(position("a:\n  {b: é"), Some((2, 8)));
        assert_eq!(position("a:\n  {b: c\n"), Some((3, 1)));
        assert_eq!(position("\n---"), Some((2, 4)));
        assert_eq!(position("\n---\n"), Some((3, 1)));
    }
}
