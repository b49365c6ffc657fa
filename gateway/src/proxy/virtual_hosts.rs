//! Virtual hosts: the path patterns that apply to the requests of a host. Each set of hosts with the same patterns
//! has a matcher, so that the host costs one or two look-ups in a table, and nothing if no rule names a host.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Result;

use crate::config::{HostPattern, PathRule};
use crate::http::syntax::host_name;
use crate::proxy::path_matcher::PathMatcher;

/// Maximum length of a host that is looked up: that of a host name (RFC 1035, section 2.3.4). A longer one matches
/// no pattern.
const MAX_HOST_LENGTH: usize = 253;

/// Matchers by host.
#[derive(Debug)]
pub(super) struct VirtualHosts {
    /// Matcher of the hosts that no rule names.
    any: PathMatcher,
    /// Matchers by name, as in `shop.example.org` or `*.example.org`.
    by_name: HashMap<String, Arc<PathMatcher>>,
}

impl VirtualHosts {
    /// Compiles the patterns of `rules`.
    ///
    /// # Errors
    /// Returns an error if the patterns of one host together exceed the size limit of the matcher.
    pub(super) fn new(rules: &[PathRule]) -> Result<Self> {
        let mut by_name = HashMap::new();
        let mut by_rules = HashMap::<_, Arc<PathMatcher>>::new();
        for host in rules.iter().flat_map(|rule| &rule.hosts) {
            let indexes = rules_of_host(rules, host);
            let matcher = match by_rules.get(&indexes) {
                Some(matcher) => Arc::clone(matcher),
                None => Arc::new(compile(rules, &indexes)?),
            };
            by_rules.insert(indexes, Arc::clone(&matcher));
            by_name.insert(host.as_str().to_owned(), matcher);
        }
        let is_for_any_host = |index: &usize| rules[*index].hosts.is_empty();
        let for_any_host: Vec<_> = (0..rules.len()).filter(is_for_any_host).collect();
        Ok(Self {
            any: compile(rules, &for_any_host)?,
            by_name,
        })
    }

    /// Returns the matcher of a host, which is the value of `Host`: that of the host's own name, or of the wildcard
    /// that covers it, or of all other hosts.
    pub(super) fn matcher(&self, host: Option<&str>) -> &PathMatcher {
        if self.by_name.is_empty() {
            return &self.any;
        }
        host.and_then(|host| self.named(host_name(host)))
            .unwrap_or(&self.any)
    }

    fn named(&self, host: &str) -> Option<&PathMatcher> {
        let mut buffer = [0; MAX_HOST_LENGTH];
        let name = buffer.get_mut(..host.len())?;
        name.copy_from_slice(host.as_bytes());
        name.make_ascii_lowercase();
        if let Some(matcher) = self.by_name.get(str::from_utf8(name).ok()?) {
            return Some(matcher);
        }
        // The last byte of the first label becomes the `*` of the wildcard.
        let start = memchr::memchr(b'.', name)?.checked_sub(1)?;
        name[start] = b'*';
        let wildcard = str::from_utf8(&name[start..]).ok()?;
        self.by_name.get(wildcard).map(|matcher| &**matcher)
    }
}

/// Returns the indexes of the rules that apply to the hosts of a pattern: to all of them.
fn rules_of_host(rules: &[PathRule], host: &HostPattern) -> Vec<usize> {
    let applies = |rule: &PathRule| {
        rule.hosts.is_empty() || rule.hosts.iter().any(|pattern| pattern.covers(host))
    };
    (0..rules.len())
        .filter(|index| applies(&rules[*index]))
        .collect()
}

fn compile(rules: &[PathRule], indexes: &[usize]) -> Result<PathMatcher> {
    let pattern = |index: &usize| (*index, rules[*index].pattern.matcher());
    PathMatcher::new(indexes.iter().map(pattern))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{Config, Environment};

    fn rules(paths: &str) -> Vec<PathRule> {
        let yaml = format!("premier: {{paths: [{paths}]}}");
        let config = Config::parse("gateway.yml".as_ref(), &yaml, &Environment::for_tests());
        config.unwrap().paths
    }

    #[test]
    fn the_first_rule_that_is_for_the_host_and_matches_the_path_applies() {
        let rules = rules(
            "{pattern: /a, hosts: [shop.example.org, '::1']}, {pattern: /a, hosts: ['*.example.org']}, \
             {pattern: '/*', hosts: [shop.example.org]}, {pattern: /b}",
        );
        let hosts = VirtualHosts::new(&rules).unwrap();
        for (host, path, rule) in [
            ("shop.example.org", "/a", Some(0)),
            ("SHOP.example.org.:8443", "/a", Some(0)),
            ("[::1]:443", "/a", Some(0)),
            ("www.example.org", "/a", Some(1)),
            ("w.EXAMPLE.org:443", "/a", Some(1)),
            ("shop.example.org", "/b", Some(2)),
            ("shop.example.org", "/c", Some(2)),
            ("www.example.org", "/b", Some(3)),
            ("www.example.org", "/c", None),
            ("example.org", "/a", None),
            ("a.b.example.org", "/a", None),
            (".example.org", "/a", None),
            ("*.example.org", "/b", Some(3)),
            ("other", "/b", Some(3)),
            (&"a".repeat(MAX_HOST_LENGTH + 1), "/b", Some(3)),
        ] {
            assert_eq!(hosts.matcher(Some(host)).find(path), rule, "{host} {path}");
        }
        assert_eq!(hosts.matcher(None).find("/b"), Some(3));
    }

    proptest! {
        #[test]
        fn the_table_finds_the_same_rule_as_a_loop(
            rules in proptest::collection::vec(
                (0..3_usize, proptest::collection::vec("(\\*|[ab])\\.[ab]|[ab]", 0..3)),
                1..6,
            ),
            host in "([ab]\\.)?([ab]\\.)?[ab]",
            path in 0..3_usize,
        ) {
            let rule = |(path, hosts): &(usize, Vec<String>)| match hosts.as_slice() {
                [] => format!("{{pattern: /{path}}}"),
                hosts => format!("{{pattern: /{path}, hosts: ['{}']}}", hosts.join("','")),
            };
            let yaml: Vec<_> = rules.iter().map(rule).collect();
            let hosts = VirtualHosts::new(&self::rules(&yaml.join(", "))).unwrap();
            let matches_host = |pattern: &String| match pattern.strip_prefix("*.") {
                Some(parent) => host.split_once('.').is_some_and(|(_, rest)| rest == parent),
                None => *pattern == host,
            };
            let expected = rules.iter().position(|(other, hosts)| {
                *other == path && (hosts.is_empty() || hosts.iter().any(matches_host))
            });
            let found = hosts.matcher(Some(&host)).find(&format!("/{path}"));
            prop_assert_eq!(found, expected);
        }
    }
}
