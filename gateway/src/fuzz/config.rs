//! Configurations.

use logging::AccessLog;

use crate::config::{Config, Environment};
use crate::proxy::state::GatewayState;

/// Result of loading a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigOutcome {
    /// It is valid, and a gateway starts with it.
    Active { hash: String },
    /// It is valid, but a gateway does not start with it.
    NotActivated(String),
    Rejected {
        /// Errors as the operator sees them.
        message: String,
        /// Line and column of each error, `None` for one that concerns the file as a whole.
        positions: Vec<Option<(usize, usize)>>,
    },
}

/// Checks a configuration as `gateway check` does, and creates the state of a gateway with it.
#[must_use]
pub fn load_config(text: &str) -> ConfigOutcome {
    let environment = Environment::for_tests();
    let config = match Config::parse("gateway.yml".as_ref(), text, &environment) {
        Ok(config) => config,
        Err(errors) => {
            return ConfigOutcome::Rejected {
                message: errors.to_string(),
                positions: errors.positions().collect(),
            };
        }
    };
    let hash = config.hash.clone();
    match GatewayState::new(config, AccessLog::disabled()) {
        Ok(_) => ConfigOutcome::Active { hash },
        Err(error) => ConfigOutcome::NotActivated(format!("{error:#}")),
    }
}
