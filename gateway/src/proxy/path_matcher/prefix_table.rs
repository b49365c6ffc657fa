//! Table of the prefixes that patterns such as `/api/*` match.
//!
//! A path has as many prefixes that end with a slash as it has slashes: each is looked up, no more of them than the
//! longest prefix of the table has. An automaton would need a state, in a cache line of its own, for almost each byte of
//! a path; a look-up that fails needs a few bytes that all look-ups share, and one that succeeds two more cache lines.

use hashbrown::HashMap;

/// Prefixes of paths, each of which ends with a slash.
#[derive(Debug, Default)]
pub(super) struct PrefixTable {
    /// Index of the first pattern that matches all paths with this prefix: its own, or that of a shorter prefix.
    first_patterns: HashMap<Box<str>, usize>,
    /// Maximum number of slashes in a prefix.
    max_slashes: usize,
}

impl PrefixTable {
    /// Creates the table of `prefixes`, each with the index of its pattern.
    pub(super) fn new(prefixes: &[(&str, usize)]) -> Self {
        let mut table = Self::default();
        for &(prefix, index) in prefixes {
            table.max_slashes = table.max_slashes.max(slashes(prefix).count());
            let first = table.first_patterns.entry(prefix.into()).or_insert(index);
            *first = index.min(*first);
        }
        // In ascending order of length, a prefix knows those of all shorter ones when its turn comes.
        let mut ascending: Vec<_> = table.first_patterns.keys().cloned().collect();
        ascending.sort_unstable_by_key(|prefix| prefix.len());
        for prefix in ascending {
            let first =
                prefixes_of(&prefix).filter_map(|shorter| table.first_patterns.get(shorter));
            if let Some(first) = first.min().copied() {
                table.first_patterns.insert(prefix, first);
            }
        }
        table
    }

    /// Returns the index of the first pattern whose prefix a path has.
    pub(super) fn find(&self, path: &str) -> Option<usize> {
        let known = prefixes_of(path).take(self.max_slashes);
        let found = known.filter_map(|prefix| self.first_patterns.get(prefix));
        found.last().copied()
    }
}

/// Returns the prefixes of a path that end with a slash, the shortest one first.
fn prefixes_of(path: &str) -> impl Iterator<Item = &str> {
    slashes(path).map(|position| &path[..=position])
}

fn slashes(path: &str) -> impl Iterator<Item = usize> {
    memchr::memchr_iter(b'/', path.as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_table_finds_the_same_prefix_as_a_loop(
            prefixes in prop::collection::vec("/([ab]{1,2}/){0,3}", 0..8),
            path in "/([ab]{1,2}/?){0,5}",
        ) {
            let numbered: Vec<_> = prefixes.iter().map(String::as_str).zip(0..).collect();
            let expected = prefixes.iter().position(|prefix| path.starts_with(prefix));
            prop_assert_eq!(PrefixTable::new(&numbered).find(&path), expected);
        }
    }
}
