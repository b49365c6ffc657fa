//! Matcher of normalised paths: one hash look-up for all exact patterns, one for each segment of the path for all
//! prefixes, and one automaton for all others, so that the cost of a match does not grow with the number of patterns.

mod prefix_table;

use std::collections::HashMap;

use anyhow::{Context, Result};
use regex_automata::meta::Regex;
use regex_automata::{Anchored, Input, MatchKind};

use crate::config::{Matcher, pattern_syntax};
use crate::proxy::path_matcher::prefix_table::PrefixTable;

/// Size limit of the compiled patterns, in bytes.
const MAX_AUTOMATON_SIZE: usize = 256 << 20;
/// Size limit of the cache of the lazy DFA, in bytes per thread.
const LAZY_DFA_CACHE_SIZE: usize = 8 << 20;

/// Finds the first pattern that matches a path.
#[derive(Debug)]
pub(crate) struct PathMatcher {
    /// Index of the first pattern for each exact path.
    exact: HashMap<String, usize>,
    prefixes: PrefixTable,
    /// All other patterns. Leftmost-first semantics, as of an alternation: the match is that of the first
    /// matching pattern.
    regexes: Option<Regex>,
    /// Index of each of `regexes` among all patterns.
    regex_indexes: Vec<usize>,
}

impl PathMatcher {
    /// Compiles `patterns`, each with the index that [`Self::find`] returns for it, in ascending order.
    ///
    /// # Errors
    /// Returns an error if the patterns together exceed [`MAX_AUTOMATON_SIZE`].
    pub(crate) fn new<'p>(
        patterns: impl IntoIterator<Item = (usize, &'p Matcher)>,
    ) -> Result<Self> {
        let (mut exact, mut prefixes) = (HashMap::new(), Vec::new());
        let (mut regexes, mut regex_indexes) = (Vec::new(), Vec::new());
        for (index, pattern) in patterns {
            match pattern {
                Matcher::Exact(path) => {
                    exact.entry(path.clone()).or_insert(index);
                }
                Matcher::Prefix(prefix) => prefixes.push((prefix.as_str(), index)),
                Matcher::Regex(regex) => {
                    regexes.push(regex.as_str());
                    regex_indexes.push(index);
                }
            }
        }
        Ok(Self {
            exact,
            prefixes: PrefixTable::new(&prefixes),
            regexes: if regexes.is_empty() {
                None
            } else {
                Some(compile(&regexes)?)
            },
            regex_indexes,
        })
    }

    /// Returns the index of the first pattern that matches a normalised path.
    pub(crate) fn find(&self, path: &str) -> Option<usize> {
        let exact = self.exact.get(path).copied();
        let prefix = self.prefixes.find(path);
        let regex = self.regexes.as_ref().and_then(|regexes| {
            let input = Input::new(path).anchored(Anchored::Yes);
            let found = regexes.search_half(&input)?;
            Some(self.regex_indexes[found.pattern().as_usize()])
        });
        [exact, prefix, regex].into_iter().flatten().min()
    }
}

fn compile(regexes: &[&str]) -> Result<Regex> {
    let configuration = Regex::config()
        .match_kind(MatchKind::LeftmostFirst)
        .utf8_empty(false)
        .nfa_size_limit(Some(MAX_AUTOMATON_SIZE))
        .hybrid_cache_capacity(LAZY_DFA_CACHE_SIZE);
    Regex::builder()
        .configure(configuration)
        .syntax(pattern_syntax())
        .build_many(regexes)
        .context("compiling the path patterns")
}
