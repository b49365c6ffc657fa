//! Path patterns.

use crate::config::PathPattern;
use crate::proxy::path_matcher::PathMatcher;

/// Compiled patterns, as the routes have them.
#[derive(Debug)]
pub struct Patterns(PathMatcher);

impl Patterns {
    /// Compiles patterns.
    ///
    /// # Errors
    /// Returns the message for the operator if one is not valid.
    pub fn compile(texts: &[&str]) -> Result<Self, String> {
        let patterns: Result<Vec<PathPattern>, _> = texts.iter().map(|text| text.parse()).collect();
        let patterns = patterns?;
        let matchers = patterns.iter().map(PathPattern::matcher).enumerate();
        PathMatcher::new(matchers)
            .map(Self)
            .map_err(|error| format!("{error:#}"))
    }

    /// Returns the index of the first pattern that matches a normalised path.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<usize> {
        self.0.find(path)
    }
}
